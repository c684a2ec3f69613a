"""The sections of a configuration for the training of links and of the answerer."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import (
    MAX_BATCH,
    MAX_INNER_BATCH,
    MAX_NAME,
    MAX_RANK,
    MAX_ROUNDS,
    MAX_STEPS,
    MAX_VECTORS,
)
from rmas_jax.config.optimizers import OPTIMIZERS, parse_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerConfig(Section):
    """The inner loop: each agent's own link, trained alone."""

    steps: int = option(
        "optimiser steps; 0 keeps the starting links", at_least=0, at_most=MAX_STEPS
    )
    batch_size: int = option("tokens per step", at_least=1, at_most=MAX_INNER_BATCH)
    learning_rate: float = option("peak learning rate", above=0)
    warmup_steps: int = option("steps of linear warmup, fewer than steps", at_least=0)
    items: int | None = option(
        "training items whose role texts to read; null: all", None, at_least=1
    )
    lists: int = option(
        "lists of 64 random tokens, each read twice, from which inner links learn words that no "
        "role text holds; the tokens are those that a receiver of the role's messages has as well",
        0,
        at_least=0,
        at_most=10**6,
    )
    cosine_weight: float = option("weight of the cosine distance", 1.0, at_least=0)
    mse_weight: float = option("weight of the mean squared error", 0.1, at_least=0)
    repeats: int = option(
        "trainings in a row: the first on states over text, later ones also on the states of the "
        "system's own latent rounds, whose distribution differs",
        1,
        at_least=1,
        at_most=100,
    )
    noise: float = option(
        "Gaussian noise on a link's input, in units of the input's rms; prevents overfitting to "
        "contexts",
        0.0,
        at_least=0,
    )
    max_grad_norm: float = option("bound on the global gradient norm, by clipping", 1.0, above=0)
    cache_gib: float = option(
        "GiB of agents' states over their texts in OUTPUT_DIR/states, for this and other runs with "
        "the same agents and texts; states beyond this budget stay in memory; 0 disables the cache",
        64.0,
        at_least=0,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Warmup ends before training does, and the loss has a weight."""
        yield from _warmup_conflict(self.warmup_steps, self.steps)
        if self.cosine_weight == self.mse_weight == 0:
            yield "cosine_weight", "must be above 0 where mse_weight is 0, got 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """Steps, batches and optimiser of one training: of a phase, or of the answerer."""

    steps: int = option("optimiser steps", at_least=1, at_most=MAX_STEPS)
    batch_size: int = option("items per step", at_least=1, at_most=MAX_BATCH)
    accumulation: int = option(
        "parts of a batch whose gradients are accumulated in turn, to save memory",
        1,
        at_least=1,
    )
    learning_rate: float = option("peak learning rate", above=0)
    warmup_steps: int = option("steps of linear warmup, fewer than steps", 10, at_least=0)
    optimizer: str = option(
        "an optimiser of optax, with optional arguments, such as adamw(b2=0.95): "
        + ", ".join(OPTIMIZERS),
        "adamw(weight_decay=0.0)",
    )
    schedule: str = option(
        "learning rate after warmup: falls to 0 as a cosine or a line, or is constant",
        "cosine",
        choices=("cosine", "linear", "constant"),
    )
    max_grad_norm: float = option("bound on the global gradient norm, by clipping", 1.0, above=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Warmup ends before training does, parts are equal, the optimiser exists."""
        yield from _warmup_conflict(self.warmup_steps, self.steps)
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
class PhaseConfig(TrainingConfig):
    """One phase of the outer loop: the whole system, unrolled through its rounds."""

    name: str = option(
        "name of the phase in logs and checkpoints", pattern=r"[\w-]+", longest=MAX_NAME
    )
    latents: str = option(
        "source of latent thoughts: target texts, or the system's own rollout",
        choices=("teacher_forced", "on_policy"),
    )
    feedback: str = option(
        "with teacher_forced: the answerer's feedback. draft: its states over its text of the "
        "round; gold: over the final answer, which is then the target of every round (upstream; a "
        "leak); rollout: its own thoughts",
        "draft",
        choices=("draft", "gold", "rollout"),
    )
    rounds: int = option("unrolled rounds", at_least=1, at_most=MAX_ROUNDS)
    truncate_rounds: int | None = option(
        "most rounds that a gradient passes through; null: all", None, at_least=1
    )
    truncate_steps: int | None = option(
        "most thoughts of a rollout that a gradient passes through; null: all", None, at_least=1
    )
    remat: bool = option("whether to recompute rounds in the backward pass, to save memory", False)
    recompute_thoughts: bool = option(
        "whether to recompute rollouts, and products over texts of teacher-forced thoughts, in the "
        "backward pass, to save memory",
        True,
    )
    round_weights: tuple[float, ...] = option(
        "weight of each round's loss, one per round; empty: the last round only", (), at_least=0
    )
    role_text_weight: float = option("weight of each stage's role text loss", 0.0, at_least=0)
    train_inner_links: bool = option("whether to also train the inner links", False)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Also: fields of the rounds fit each other."""
        yield from super().conflicts()
        if self.round_weights and len(self.round_weights) != self.rounds:
            yield (
                "round_weights",
                f"must be none or one per round ({self.rounds}), got {len(self.round_weights)}",
            )
        if self.round_weights and not any(self.round_weights):
            yield "round_weights", "must have a weight above 0, got zeros"
        if self.feedback != "draft" and self.latents == "on_policy":
            yield (
                "feedback",
                f"must be unset with latents: on_policy, whose feedback is its rollout, "
                f"got {self.feedback}",
            )
        rolls_out = self.latents == "on_policy" or self.feedback == "rollout"
        if self.truncate_steps is not None and not rolls_out:
            yield (
                "truncate_steps",
                f"must be null with feedback={self.feedback}, which has no rollout, "
                f"got {self.truncate_steps}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig(Section):
    """The outer loop: trains links through all rounds, in phases, with checkpoints."""

    phases: tuple[PhaseConfig, ...] = option("phases in their order; empty: no outer loop")
    checkpoint_every: int = option("steps between checkpoints", 50, at_least=1)
    keep_checkpoints: int = option(
        "newest checkpoints to keep, besides the one of lowest validation loss", 2, at_least=1
    )
    log_every: int = option("steps between log lines", 10, at_least=1)
    validation_every: int = option("steps between validations", 50, at_least=1)
    validation_size: int = option("validation items", 128, at_least=1)
    keep: str = option(
        "result of a phase: the links of its last step, or those of lowest validation loss, which "
        "its first ones may be",
        "last",
        choices=("last", "best"),
    )
    max_loss: float | None = option(
        "a step with a larger loss stops the run; null: twice the loss of uniform guessing, summed "
        "over the supervised texts",
        None,
        above=0,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Phase names are unique."""
        names = [phase.name for phase in self.phases]
        if repeated := {name for name in names if names.count(name) > 1}:
            yield "phases", f"must have unique names, got {', '.join(sorted(repeated))} repeatedly"


TUNED = "answerer_"  # and the kind of a tuning: its method
TUNING_KINDS = ("lora", "full", "soft_prompt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig(TrainingConfig):
    """A training of the answerer alone on the final answers: a baseline of trained links."""

    kind: str = option(
        "trained parameters: low-rank updates of matrices, all weights, or vectors before the "
        "prompt",
        choices=TUNING_KINDS,
    )
    steps: int | None = option(  # type: ignore[assignment]
        "optimiser steps; null: as many as all phases of the outer loop",
        None,
        at_least=1,
        at_most=MAX_STEPS,
    )
    batch_size: int | None = option(  # type: ignore[assignment]
        "items per step; null: the largest of the phases' batches",
        None,
        at_least=1,
        at_most=MAX_BATCH,
    )
    rank: int = option("with lora: rank of an update", 16, at_least=1, at_most=MAX_RANK)
    alpha: float = option("with lora: an update is scaled by alpha / rank", 32.0, above=0)
    matrices: tuple[str, ...] = option(
        "with lora: matrices to update, such as attention/q_kernel (paths in "
        "rmas_jax/models/weights.py); empty: those of all linear layers",
        (),
    )
    vectors: int | None = option(
        "with soft_prompt: number of vectors; null: as many parameters as all links",
        None,
        at_least=1,
        at_most=MAX_VECTORS,
    )
    remat: bool = option("whether to recompute layers in the backward pass, to save memory", True)

    @property
    def name(self) -> str:
        """Of the method in results, of files and curves."""
        return f"{TUNED}{self.kind}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Fields of other kinds are unset; `tuning_conflicts` checks the others."""
        kinds = {"rank": "lora", "alpha": "lora", "matrices": "lora", "vectors": "soft_prompt"}
        default = {field.name: field.default for field in dataclasses.fields(self)}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if self.kind != kind and value != default[name]:
                yield name, f"must be unset with kind: {self.kind}, got {value}"


def with_budgets(tuning: tuple[TuningConfig, ...], outer: OuterConfig) -> tuple[TuningConfig, ...]:
    """The entries with steps and batch sizes; by default those of the outer loop's phases."""
    steps = sum(phase.steps for phase in outer.phases)
    batch_size = max((phase.batch_size for phase in outer.phases), default=0)
    return tuple(
        dataclasses.replace(
            entry,
            steps=steps if entry.steps is None else entry.steps,
            batch_size=batch_size if entry.batch_size is None else entry.batch_size,
        )
        for entry in tuning
    )


def tuning_conflicts(
    tuning: tuple[TuningConfig, ...], outer: OuterConfig
) -> Iterator[tuple[str, str]]:
    """Yields the conflicts of `tuning` with itself and with the outer loop's phases."""
    kinds = [entry.kind for entry in tuning]
    if len(set(kinds)) < len(kinds):
        yield "tuning", f"must have one entry of a kind, got {', '.join(kinds)}"
    taken = {entry.name for entry in tuning} & {phase.name for phase in outer.phases}
    if taken:
        yield "outer.phases", f"must not have a name of the section tuning, got {min(taken)}"
    for i, entry in enumerate(with_budgets(tuning, outer)):
        missing = [name for name in ("steps", "batch_size") if not getattr(entry, name)]
        for name in missing:
            yield f"tuning.{i}.{name}", "must be a number without outer.phases, got null"
        if not missing:
            for name, message in TrainingConfig.conflicts(entry):
                yield f"tuning.{i}.{name}", message


def _warmup_conflict(warmup_steps: int, steps: int) -> Iterator[tuple[str, str]]:
    if 0 < steps <= warmup_steps:
        yield "warmup_steps", f"must be fewer than steps ({steps}), got {warmup_steps}"


# For a run without one of the loops.
NO_INNER = InnerConfig(steps=0, batch_size=1, learning_rate=1e-3, warmup_steps=0)
NO_OUTER = OuterConfig(phases=())
