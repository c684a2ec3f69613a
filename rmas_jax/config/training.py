"""The sections of a configuration for the training of links."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import MAX_BATCH, MAX_INNER_BATCH, MAX_NAME, MAX_ROUNDS, MAX_STEPS
from rmas_jax.config.optimizers import OPTIMIZERS, parse_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerConfig(Section):
    """The inner loop: each agent's own link, trained alone."""

    steps: int = option(
        "optimiser steps; 0 leaves the inner links as they start", at_least=0, at_most=MAX_STEPS
    )
    batch_size: int = option("tokens per step", at_least=1, at_most=MAX_INNER_BATCH)
    learning_rate: float = option("peak learning rate", above=0)
    warmup_steps: int = option("steps of linear warmup, fewer than steps", at_least=0)
    items: int | None = option(
        "training items whose role texts are read; null: all", None, at_least=1
    )
    cosine_weight: float = option("weight of the cosine distance", 1.0, at_least=0)
    mse_weight: float = option("weight of the mean squared error", 0.1, at_least=0)
    repeats: int = option(
        "trainings in a row: the first on states that read text, later ones also on the states of "
        "the system's own latent rounds, which drift from those",
        1,
        at_least=1,
        at_most=100,
    )
    noise: float = option(
        "Gaussian noise on what a link reads, in units of its rms; keeps it from learning contexts",
        0.0,
        at_least=0,
    )
    max_grad_norm: float = option("global gradient norm is clipped here", 1.0, above=0)
    cache_gib: float = option(
        "GiB of agents' states over their texts that may lie in OUTPUT_DIR/states, for this and "
        "other runs with the same agents and texts; what has no room is kept in memory, with 0 all",
        64.0,
        at_least=0,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Warmup ends before training does, and the loss has a weight."""
        yield from _warmup_conflict(self.warmup_steps, self.steps)
        if self.cosine_weight == self.mse_weight == 0:
            yield "cosine_weight", "cosine_weight and mse_weight are both 0: nothing to train on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig(Section):
    """One phase of the outer loop: the whole system, unrolled through its rounds."""

    name: str = option(
        "name of the phase in logs and checkpoints", pattern=r"[\w-]+", longest=MAX_NAME
    )
    latents: str = option(
        "thoughts from target texts, or from the system's own rollout",
        choices=("teacher_forced", "on_policy"),
    )
    feedback: str = option(
        "teacher_forced: what the answerer feeds back. draft: its states over its own text of the "
        "round; gold: over the final answer, which it is then trained to write in every round "
        "(upstream; a leak); rollout: thoughts of its own",
        "draft",
        choices=("draft", "gold", "rollout"),
    )
    rounds: int = option("rounds that are unrolled", at_least=1, at_most=MAX_ROUNDS)
    truncate_rounds: int | None = option(
        "rounds that a gradient passes through at most; null: all", None, at_least=1
    )
    truncate_steps: int | None = option(
        "thoughts of a rollout that a gradient passes through at most; null: all", None, at_least=1
    )
    steps: int = option("optimiser steps", at_least=1, at_most=MAX_STEPS)
    batch_size: int = option("items per step", at_least=1, at_most=MAX_BATCH)
    accumulation: int = option(
        "parts of a batch whose gradients are added up one after another, to save memory",
        1,
        at_least=1,
    )
    remat: bool = option(
        "whether rounds are recomputed in the backward pass, to save memory", False
    )
    learning_rate: float = option("peak learning rate", above=0)
    warmup_steps: int = option("steps of linear warmup, fewer than steps", 10, at_least=0)
    optimizer: str = option(
        "an optimiser of optax, with arguments if wanted, such as adamw(b2=0.95): "
        + ", ".join(OPTIMIZERS),
        "adamw(weight_decay=0.0)",
    )
    schedule: str = option(
        "learning rate after warmup: falls to 0 as a cosine or a line, or stays",
        "cosine",
        choices=("cosine", "linear", "constant"),
    )
    max_grad_norm: float = option("global gradient norm is clipped here", 1.0, above=0)
    round_weights: tuple[float, ...] = option(
        "weight of each round's loss, one per round; empty: the last round only", (), at_least=0
    )
    role_text_weight: float = option("weight of each stage's role text loss", 0.0, at_least=0)
    train_inner_links: bool = option("whether the inner links are trained on as well", False)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Warmup ends before training does; other fields fit each other."""
        yield from _warmup_conflict(self.warmup_steps, self.steps)
        if self.round_weights and len(self.round_weights) != self.rounds:
            yield (
                "round_weights",
                f"must be none or one per round ({self.rounds}), got {len(self.round_weights)}",
            )
        if self.round_weights and not any(self.round_weights):
            yield "round_weights", "all are 0: nothing to train on"
        if self.feedback != "draft" and self.latents == "on_policy":
            yield (
                "feedback",
                f"{self.feedback} is for teacher_forced; on_policy feeds its rollout back",
            )
        rolls_out = self.latents == "on_policy" or self.feedback == "rollout"
        if self.truncate_steps is not None and not rolls_out:
            yield (
                "truncate_steps",
                f"of no use: feedback={self.feedback} rolls nothing out",
            )
        if self.batch_size % self.accumulation:
            yield (
                "accumulation",
                f"must be a divisor of batch_size ({self.batch_size}), got {self.accumulation}",
            )
        try:
            parse_optimizer(self.optimizer)
        except ValueError as error:
            yield "optimizer", str(error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig(Section):
    """The outer loop: links through all rounds, in phases, with checkpoints."""

    phases: tuple[PhaseConfig, ...] = option("run one after the other; empty: no outer loop")
    checkpoint_every: int = option("steps between checkpoints", 50, at_least=1)
    keep_checkpoints: int = option(
        "newest checkpoints to keep, beside the one of lowest validation loss", 2, at_least=1
    )
    log_every: int = option("steps between log lines", 10, at_least=1)
    validation_every: int = option("steps between validations", 50, at_least=1)
    validation_size: int = option("validation items", 128, at_least=1)
    keep: str = option(
        "links that a phase ends with: those of its last step, or of lowest validation loss",
        "last",
        choices=("last", "best"),
    )
    max_loss: float | None = option(
        "a step of a larger loss stops the run; null: twice the loss of guessing, for every text "
        "that the loss counts",
        None,
        above=0,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Phase names are unique."""
        names = [phase.name for phase in self.phases]
        if repeated := {name for name in names if names.count(name) > 1}:
            yield "phases", f"more than one phase is called {', '.join(sorted(repeated))}"


def _warmup_conflict(warmup_steps: int, steps: int) -> Iterator[tuple[str, str]]:
    if 0 < steps <= warmup_steps:
        yield "warmup_steps", f"must be fewer than steps ({steps}), got {warmup_steps}"


# For a run without one of the loops.
NO_INNER = InnerConfig(steps=0, batch_size=1, learning_rate=1e-3, warmup_steps=0)
NO_OUTER = OuterConfig(phases=())
