"""Effects of messages, from the graded items of an audit: pure statistics.

Each effect is a difference of two accuracies on the same questions, see `audit`. Draws of other
items, and seeds, are repeated answers to a question: intervals are over questions. With three seeds
or more, `seed_effects` has intervals over questions and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmas_jax.config.benchmark import ACCURACY
from rmas_jax.evaluation.comparisons import (
    MIN_SEEDS,
    SeedEffect,
    holm,
    seed_effect,
    smallest_difference,
)
from rmas_jax.evaluation.metrics import PairedDifference, paired_difference
from rmas_jax.evaluation.rows import ItemRow, is_correct

# Effect -> the conditions whose accuracies differ by it: the first minus the second.
EFFECTS: Mapping[str, tuple[str, str]] = {
    "total effect": ("true", "none"),
    "effect of a message": ("other", "none"),
    "content-attributable gain": ("true", "other"),
    "own-message gap": ("true", "own"),
    "gap to zeros": ("true", "zeros"),
    "gap to noise": ("true", "noise"),
}
CONTENT = "content-attributable gain"


class Place(NamedTuple):
    """Where messages were replaced."""

    edge: str | None  # None: on all edges
    round: int | None  # from 1; None: in all rounds

    @property
    def scope(self) -> str:
        """A scope of `config.audit.SCOPES`: a family of comparisons."""
        if self.edge is None:
            return "all" if self.round is None else "round"
        return "edge" if self.round is None else "cell"


class Effect(NamedTuple):
    """An effect at a place."""

    name: str  # of EFFECTS
    place: Place
    pair: PairedDifference
    adjusted: float  # p-value, by Holm's method within the effect and scope
    smallest: float | None  # difference that so many questions show with a power of 80 %


Answers = dict[str, list[tuple[tuple[int, str | int], bool]]]  # message -> question, correct


def effects(
    items: Sequence[ItemRow],
    conditions: Mapping[str, Mapping[str, Any]],
    confidence: float = 0.95,
    *,
    metric: str = ACCURACY,
) -> list[Effect]:
    """All effects that were measured on one split, in the order of places and EFFECTS.

    Args:
      items: of one split, of any number of seeds.
      conditions: of the protocol: name -> message, edge, round, draw.
      confidence: of the intervals.
      metric: of the benchmark, which says when a question is right.
    """
    answers: dict[Place, Answers] = {}
    true: dict[tuple[int, str | int], bool] = {}
    for item in items:
        condition = conditions[item["method"]]
        question = item["seed"], item["id"]
        if condition["message"] == "true":
            true[question] = is_correct(item, metric)
            continue
        place = Place(condition["edge"], condition["round"])
        of_message = answers.setdefault(place, {}).setdefault(condition["message"], [])
        of_message.append((question, is_correct(item, metric)))
    found: list[tuple[str, Place, PairedDifference]] = []
    for place, by_message in answers.items():
        for name, (first, second) in EFFECTS.items():
            pair = _compare(by_message, true, first, second, confidence)
            if pair is not None:
                found.append((name, place, pair))
    families: dict[tuple[str, str], list[int]] = {}
    for i, (name, place, _) in enumerate(found):
        families.setdefault((name, place.scope), []).append(i)
    adjusted: dict[int, float] = {}
    for members in families.values():
        corrected = holm([found[i][2].p_value for i in members])
        adjusted |= dict(zip(members, corrected, strict=True))
    return [
        Effect(name, place, pair, adjusted[i], _smallest(pair))
        for i, (name, place, pair) in enumerate(found)
    ]


def seed_effects(
    items: Sequence[ItemRow],
    conditions: Mapping[str, Mapping[str, Any]],
    confidence: float = 0.95,
    *,
    metric: str = ACCURACY,
) -> dict[str, SeedEffect]:
    """Effects on all edges in all rounds, with questions and seeds as random effects.

    A question's score is its mean over draws. Empty with fewer than `MIN_SEEDS` seeds. Questions
    that a seed lacks are left out. Arguments are those of `effects`.
    """
    scores: dict[str, dict[int, dict[str | int, list[bool]]]] = {}
    for item in items:
        condition = conditions[item["method"]]
        if Place(condition["edge"], condition["round"]).scope == "all":
            of_seed = scores.setdefault(condition["message"], {}).setdefault(item["seed"], {})
            of_seed.setdefault(item["id"], []).append(is_correct(item, metric))
    seeds = sorted({item["seed"] for item in items})
    if len(seeds) < MIN_SEEDS:
        return {}
    found = {}
    for name, sides in EFFECTS.items():
        if not all(scores.get(side, {}).keys() >= set(seeds) for side in sides):
            continue
        known = [scores[side][seed].keys() for side in sides for seed in seeds]
        questions = [q for q in scores[sides[0]][seeds[0]] if all(q in ids for ids in known)]
        ours, theirs = (
            np.array([[np.mean(scores[side][seed][q]) for q in questions] for seed in seeds])
            for side in sides
        )
        found[name] = seed_effect(ours - theirs, confidence)
    return found


def _compare(
    by_message: Answers,
    true: Mapping[tuple[int, str | int], bool],
    first: str,
    second: str,
    confidence: float,
) -> PairedDifference | None:
    """The first minus the second; the side with fewer answers to a question repeats its own."""
    if second not in by_message or (first != "true" and first not in by_message):
        return None
    if first == "true":
        pairs = [(q, true[q], other) for q, other in by_message[second] if q in true]
    else:
        once = dict(by_message[second])
        pairs = [(q, ours, once[q]) for q, ours in by_message[first] if q in once]
    if not pairs:
        return None
    questions, ours, theirs = zip(*pairs, strict=True)
    return paired_difference(ours, theirs, confidence, items=[q[1] for q in questions])


def _smallest(pair: PairedDifference) -> float | None:
    return smallest_difference(pair.items, (pair.only_a + pair.only_b) / pair.answers)
