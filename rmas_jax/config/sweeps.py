"""The section of parallel thinking."""

import dataclasses

from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import MAX_LATENT_STEPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Section):
    """Parallel thinking: a sweep makes all thoughts of a window at once, from those of the last."""

    window: int = option(
        "most thoughts that a sweep makes; a stage's windows are settled in order",
        8,
        at_least=2,
        at_most=MAX_LATENT_STEPS,
    )
    most: int | None = option(
        "most sweeps of a window; null: one per thought, which gives the sequential thoughts",
        None,
        at_least=1,
        at_most=MAX_LATENT_STEPS,
    )
    tolerance: float = option(
        "ends an item's sweeps of a window once one changes its thoughts by less than this share; "
        "0: once none changes",
        0.0,
        at_least=0,
    )
    start: str = option(
        "thoughts before the first sweep. last: the thought before the window; round: from round 2 "
        "on, those of the round before",
        "round",
        choices=("last", "round"),
    )
    gradient: int | None = option(
        "most sweeps of a window that a gradient passes through; null: one per thought, all",
        None,
        at_least=1,
        at_most=MAX_LATENT_STEPS,
    )
