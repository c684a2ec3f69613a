"""The settings of an engine."""

from __future__ import annotations

import dataclasses

from rmas_jax.agents.sampling import GREEDY
from rmas_jax.config import ConfigError
from rmas_jax.config.limits import MAX_BATCH, MAX_ROLLOUTS, MAX_ROUNDS, MAX_TOKENS
from rmas_jax.host.errors import shown
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.rounds.channels import CHANNELS, LATENT, TEXT

# Field -> the least and the largest number.
LIMITS = {
    "rows": (1, MAX_BATCH),
    "batch": (1, MAX_BATCH),
    "max_tokens": (1, MAX_TOKENS),
    "message_tokens": (1, MAX_TOKENS),
    "max_n": (1, MAX_ROLLOUTS),
    "queue": (1, 1_000_000),
    "rounds": (1, MAX_ROUNDS),
    "max_rounds": (1, MAX_ROUNDS),
    "nearest": (0, 1_000),
    "steps_at_once": (1, MAX_TOKENS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sizes of an engine, which fix its programs, and the defaults of requests."""

    rows: int = 32  # texts that are written at once
    batch: int = 8  # requests that go through the rounds together; fewer are filled up
    # Tokens of a block of a prompt that holds texts of the question, ascending: a request gets the
    # first that is enough for all roles; without the start that all prompts of a role share.
    widths: tuple[int, ...] = (128, 512)
    max_tokens: int = 512  # of a text: the most, and the default
    message_tokens: int = 128  # most of a message in text
    max_n: int = 32  # texts of a request
    queue: int = 256  # requests that wait for their rounds
    rounds: int = 1  # the default
    max_rounds: int = MAX_ROUNDS
    channels: tuple[str, ...] = (LATENT, TEXT)  # that requests may name; the first is the default
    # Temperature and top-p are the defaults of requests, other rules hold for all.
    sampling: SamplingConfig = GREEDY
    nearest: int = 8  # most tokens that a watched request may ask for, of each vector
    steps_at_once: int = 8  # of the model between two looks at the rows
    # The start that all prompts of a role share is read once; one question gains nothing by it.
    shares_starts: bool = True

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(
                    f"{name} must be a whole number from {least:,} to {most:,}, got {shown(value)}"
                )
        if self.rounds > self.max_rounds:
            raise ConfigError(
                f"rounds must be at most max_rounds={self.max_rounds}, got {self.rounds}"
            )
        rising = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        if not self.widths or self.widths[0] < 1 or not rising:
            raise ConfigError(
                f"widths must be whole numbers above 0, ascending, got {shown(self.widths)}"
            )
        allowed = (*CHANNELS, TEXT)
        if not self.channels or not set(self.channels) <= set(allowed):
            raise ConfigError(
                f"channels must be one or more of {', '.join(allowed)}, got {shown(self.channels)}"
            )
