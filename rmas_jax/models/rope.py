"""Rotary frequencies as data, computed on the host from a base and a scaling for long contexts.

The kinds are values of `rope_type` in Hugging Face configurations: `default`, `linear` (position
interpolation, arXiv 2306.15595), `llama3` (Llama 3.1), `yarn` (arXiv 2309.00071), `dynamic` (NTK)
and `longrope` (arXiv 2402.13753).

The last two have other frequencies for long texts than for short ones. transformers uses those of
the longest text of a call for the whole batch, and does not rotate cached keys again: a text's
result then depends on its batch and on its division into calls. Up to `original_length` positions
neither happens; here this is the maximum (`position_limit`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rmas_jax.host.errors import shown
from rmas_jax.models.errors import UnsupportedModelError

KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
BOUNDED = ("dynamic", "longrope")  # read no more than original_length positions


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretching of a base's frequencies for longer contexts; hashable."""

    kind: str = "default"  # one of KINDS
    factor: float = 1.0  # ratio of the new context length to the old; all kinds but default
    original_length: int = 0  # positions in pretraining; all kinds but default and linear
    low_freq_factor: float = 1.0  # llama3: waves longer than original_length / this are stretched
    high_freq_factor: float = 4.0  # llama3: waves shorter than original_length / this are kept
    beta_fast: float = 32.0  # yarn: frequencies with more turns in original_length are kept
    beta_slow: float = 1.0  # yarn: frequencies with fewer turns are stretched
    truncate: bool = True  # yarn: round the bounds between kept and stretched outwards
    # yarn, longrope: factor on sine and cosine, of queries and keys alike
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()  # longrope: [R/2] stretching of each wave
    long_factor: tuple[float, ...] = ()  # the same past original_length: not used, kept for files

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnsupportedModelError(
                f"rope_type={shown(self.kind)}: must be one of {', '.join(KINDS)}"
            )
        for name in ("factor", "low_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UnsupportedModelError(
                    f"rope {name}={shown(getattr(self, name))}: must be finite and above 0"
                )
        if self.high_freq_factor <= self.low_freq_factor:
            raise UnsupportedModelError(
                f"rope high_freq_factor={self.high_freq_factor!r}: must be above "
                f"low_freq_factor={self.low_freq_factor!r}"
            )
        if self.kind not in ("default", "linear") and self.original_length < 1:
            raise UnsupportedModelError(
                f"rope original_max_position_embeddings={self.original_length!r}: "
                f"must be at least 1 for {self.kind}"
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
                    f"rope {name} has {len(getattr(self, name))} numbers: must have "
                    f"{rotated // 2}, half of the dimensions of a head that rotate"
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
            "rope original_max_position_embeddings=1: must be at least 2 for longrope"
        )
    return math.sqrt(1 + math.log(factor) / math.log(original_length))


def rotary_frequencies(theta: float, rotated: int, scaling: RopeScaling) -> np.ndarray:
    """Angle per position of every pair of dimensions.

    Args:
      theta: base of the frequencies.
      rotated: number of dimensions of a head that rotate; even.
      scaling: the stretching for long contexts; `dynamic` stretches nothing within its limit.

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
            # The index at which a wave makes this many turns in the original length.
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
