"""The rows of a report of `curve`: what each measures, and the answers that they have together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmas_jax.evaluation.metrics import PairedDifference, paired_difference, repeated_interval

# What sends: these, or links that a training of `trials` has made, by its name.
TEXT, ALIGNED, NOTHING = "text", "aligned", "nothing"
MEANS, FIRST, KEPT = "means", "first", "kept"  # what M vectors could be, without a sender
OWN, OTHER, NOISE, ZEROS, NONE = "own", "other", "noise", "zeros", "none"  # what arrives
WITHOUT_LINKS = (TEXT, NOTHING, MEANS, FIRST, KEPT)
GOAL = 4  # the M at which trained links are to exceed the others

Rows = Sequence[Mapping[str, Any]]


class Accuracy(NamedTuple):
    """The share of right answers to the questions about n messages."""

    n: int
    value: float
    interval: Sequence[float]  # 95 %

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def accuracy_of(row: Mapping[str, Any]) -> Accuracy:
    """That of a row."""
    return Accuracy(row["n"], row["accuracy"], row["interval"])


@dataclasses.dataclass(frozen=True)
class Answers:
    """Whether answers are right, of all seeds: [seeds, n, persons]."""

    right: np.ndarray
    seeds: tuple[int | None, ...] = (None,)  # of the links; None: there are none

    @property
    def accuracy(self) -> Accuracy:
        """The share of right ones, with its interval over messages."""
        seeds, n, persons = self.right.shape
        interval = repeated_interval(self.right.sum((0, 2)), np.full(n, seeds * persons))
        return Accuracy(n, float(self.right.mean()), interval)

    def above(self, other: Answers) -> PairedDifference:
        """The gain over another, on the same questions and of the seeds that both have.

        Answers without links are compared with those of every seed.
        """
        common = [seed for seed in self.seeds if seed in other.seeds or None in other.seeds]
        rows = [self.seeds.index(seed) for seed in common]
        others = [other.seeds.index(seed if seed in other.seeds else None) for seed in common]
        ours, theirs = self.right[rows], other.right[others]
        messages = np.broadcast_to(np.arange(ours.shape[1])[:, None], ours.shape)
        return paired_difference(
            ours.ravel().tolist(), theirs.ravel().tolist(), items=messages.ravel().tolist()
        )


def answers_of(rows: Rows, count: int, kind: str, message: str = OWN) -> Answers | None:
    """The answers of all seeds in one cell of the tables; None: it was not measured."""
    cell = [
        row
        for row in rows
        if (row["latent_steps"], row["kind"], row["message"]) == (count, kind, message)
    ]
    cell.sort(key=lambda row: row["seed"] or 0)
    found = [[[mark == "1" for mark in of] for of in row["answers"]] for row in cell]
    return Answers(np.array(found), tuple(row["seed"] for row in cell)) if found else None


def counts_of(rows: Rows) -> list[int]:
    """Every M."""
    return sorted({row["latent_steps"] for row in rows})


def trainings_of(rows: Rows) -> dict[str, Mapping[str, Any]]:
    """The trainings that made links, by name, in the order of their rows."""
    return {row["kind"]: row["trial"] for row in rows if "trial" in row}


def is_frozen(trial: Mapping[str, Any]) -> bool:
    """Whether a training leaves the sender as it is."""
    return not trial["rank"]


def gain(rows: Rows, count: int, kind: str, other: str) -> PairedDifference | None:
    """What one kind has above another at an M; None: one of them, or no common seed, is there."""
    ours, theirs = answers_of(rows, count, kind), answers_of(rows, count, other)
    if ours is None or theirs is None or not ({*ours.seeds, None} & {*theirs.seeds}):
        return None
    return ours.above(theirs)
