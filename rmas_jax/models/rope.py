"""Rotary frequencies, computed on the host from a base and a scaling for long contexts.

The kinds are values of `rope_type` in Hugging Face configurations: `default`, `linear` (position
interpolation, arXiv 2306.15595), `llama3` (Llama 3.1), `yarn` (arXiv 2309.00071), `dynamic` (NTK)
and `longrope` (arXiv 2402.13753).

The frequencies of the last two differ for texts beyond `original_length` positions. transformers
then uses those of the longest text of a call for the whole batch, without rotating cached keys
again: the result of a text depends on its batch and on its division into calls. Here,
`original_length` is therefore the maximum (`position_limit`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rmas_jax.host.errors import shown
from rmas_jax.models.errors import UnsupportedModelError

KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
BOUNDED = ("dynamic", "longrope")  # kinds limited to original_length positions


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of a base's frequencies for longer contexts; hashable."""

    kind: str = "default"  # one of KINDS
    factor: float = 1.0  # ratio of the new context length to the old; all kinds but default
    original_length: int = 0  # positions in pretraining; all kinds but default and linear
    low_freq_factor: float = 1.0  # llama3: stretches waves longer than original_length / this
    high_freq_factor: float = 4.0  # llama3: keeps waves shorter than original_length / this
    beta_fast: float = 32.0  # yarn: keeps frequencies with more turns in original_length
    beta_slow: float = 1.0  # yarn: stretches frequencies with fewer turns
    truncate: bool = True  # yarn: round the bounds between kept and stretched outwards
    # yarn, longrope: factor on sine and cosine, of queries and keys alike
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()  # longrope: [R/2] stretching of each wave
    long_factor: tuple[float, ...] = ()  # the same beyond original_length; only for saving

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnsupportedModelError(
                f"rope_type must be one of {', '.join(KINDS)}, got {shown(self.kind)}"
            )
        for name in ("factor", "low_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UnsupportedModelError(
                    f"rope {name} must be finite and above 0, got {shown(getattr(self, name))}"
                )
        if self.high_freq_factor <= self.low_freq_factor:
            raise UnsupportedModelError(
                f"rope high_freq_factor must be above low_freq_factor ({self.low_freq_factor!r}), "
                f"got {self.high_freq_factor!r}"
            )
        if self.kind not in ("default", "linear") and self.original_length < 1:
            raise UnsupportedModelError(
                f"rope original_max_position_embeddings must be at least 1 for {self.kind}, got "
                f"{self.original_length!r}"
            )

    @property
    def position_limit(self) -> int | None:
        """Maximum number of positions; None: no limit."""
        return self.original_length if self.kind in BOUNDED else None

    def check_rotated(self, rotated: int) -> None:
        """Raises `UnsupportedModelError` unless longrope's lists fit `rotated` dimensions."""
        for name in ("short_factor", "long_factor"):
            if self.kind == "longrope" and len(getattr(self, name)) != rotated // 2:
                raise UnsupportedModelError(
                    f"rope {name} must have {rotated // 2} numbers, half of a head's rotated "
                    f"dimensions, got {len(getattr(self, name))}"
                )


UNSCALED = RopeScaling()


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Default factor of yarn on sine and cosine."""

    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return grown(mscale) / grown(mscale_all_dim)
    return grown(1.0)


def longrope_attention_factor(factor: float, original_length: int) -> float:
    """Default factor of longrope on sine and cosine."""
    if factor <= 1:
        return 1.0
    if original_length < 2:
        raise UnsupportedModelError(
            "rope original_max_position_embeddings must be at least 2 for longrope, got 1"
        )
    return math.sqrt(1 + math.log(factor) / math.log(original_length))


def rotary_frequencies(theta: float, rotated: int, scaling: RopeScaling) -> np.ndarray:
    """Angle per position of every pair of dimensions.

    Args:
      theta: base of the frequencies.
      rotated: number of rotated dimensions of a head; even.
      scaling: for long contexts; `dynamic` has no effect within its limit.

    Returns:
      [rotated / 2] float32, computed in float64.
    """
    half = np.arange(0, rotated, 2, dtype=np.float64) / rotated
    frequencies = theta**-half
    stretched = frequencies / scaling.factor
    if scaling.kind == "linear":
        frequencies = stretched
    elif scaling.kind == "longrope":
        frequencies = frequencies / np.asarray(scaling.short_factor, np.float64)
    elif scaling.kind == "llama3":
        turns = scaling.original_length * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = kept * frequencies + (1 - kept) * stretched
    elif scaling.kind == "yarn":
        low, high = (
            # Index of the wave with this number of turns in the original length.
            rotated
            * math.log(scaling.original_length / (turns * 2 * math.pi))
            / (2 * math.log(theta))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotated - 1)
        width = high - low if high != low else 0.001  # two equal bounds are a step
        kept = 1 - np.clip((np.arange(rotated // 2) - low) / width, 0.0, 1.0)
        frequencies = kept * frequencies + (1 - kept) * stretched
    return frequencies.astype(np.float32)
