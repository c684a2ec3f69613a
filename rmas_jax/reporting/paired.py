"""Tables of the main method against all others, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.comparisons import (
    MIN_SEEDS,
    bootstrap_interval,
    holm,
    seed_effect,
    smallest_difference,
)
from rmas_jax.evaluation.metrics import PairedDifference
from rmas_jax.reporting.results import (
    ENDING_NOTE,
    ENDINGS,
    Differences,
    Result,
    Results,
    Split,
    count_rounds,
    ending_cells,
    points,
    signed_points,
)
from rmas_jax.reporting.table import ABSENT, Table

MAIN = methods.LATENT
MAIN_LABEL = methods.METHODS[MAIN].label
FEW_QUESTIONS = 100  # fewer need a warning
BOOTSTRAP_NOTE = (
    "bias-corrected and accelerated 95 % interval, resampling questions; -: where all of them "
    "differ alike."
)


class Comparison(NamedTuple):
    """The main method against another one, in a family of comparisons."""

    main: Result
    other: Result
    pair: PairedDifference
    adjusted: float  # p by Holm's correction in the family
    smallest: float | None  # difference that so many questions show; None: none


def family(results: Results, split: Split, rounds: int) -> list[Comparison]:
    """The main method at R rounds against every other method, on one split.

    A method that has one round alone, such as an agent alone, is of every family.
    """
    main = results.get(split, MAIN, rounds)
    pairs = []
    for method in results.methods:
        other = results.at(split, method, rounds)
        if main is None or other is None or method == MAIN:
            continue
        if pair := results.compare(main, other):
            pairs.append((other, pair))
    adjusted = holm([pair.p_value for _, pair in pairs])
    return [
        Comparison(main, other, pair, p_value, _smallest(pair))
        for (other, pair), p_value in zip(pairs, adjusted, strict=True)
        if main
    ]


def paired_tables(results: Results) -> list[Table]:
    """One table per split, with a family of comparisons per number of rounds; [] without pairs."""
    return [
        table
        for split in results.splits
        if (table := _paired_table(results, split, results.rounds(split)))
    ]


def _paired_table(results: Results, split: Split, rounds: Sequence[int]) -> Table | None:
    families = [found for r in rounds if (found := family(results, split, r))]
    if not families:
        return None
    compared = [comparison for found in families for comparison in found]
    has_seeds = any(len(c.main.seeds) >= MIN_SEEDS for c in compared)
    lines = []
    for c in compared:
        line = (
            str(c.main.rounds),
            _label(c.other, c.main.rounds),
            str(c.pair.items),
            str(c.pair.answers),
            str(c.pair.only_a),
            str(c.pair.only_b),
            points(c.pair),
            bootstrap_cell(differences := results.differences(c.main, c.other)),
            p_cell(c.pair.p_value),
            p_cell(c.adjusted),
            ABSENT if c.smallest is None else f"{100 * c.smallest:.1f}",
        )
        ended = ending_cells(c.other)
        over_seeds = seed_cells(differences) if has_seeds else ()
        lines.append((*line, *over_seeds, *ended))
    header = ("rounds", "against", "questions", "answers", "only latent", "only other", "points")
    header += ("bootstrap", "p", "p (Holm)", "smallest shown")
    if has_seeds:
        header += ("points over seeds", "deviation of seeds")
    header += tuple(f"other {ending}" for ending in ENDINGS.values())
    return Table(
        f"{split}: {MAIN_LABEL} minus another method, on the same questions",
        header,
        tuple(lines),
        text_columns=2,
        note=_note(split, families, has_seeds),
        name=f"paired {split}",
    )


def _note(split: Split, families: Sequence[Sequence[Comparison]], has_seeds: bool) -> str:
    sizes = ", ".join(f"{len(found)} at {count_rounds(found[0].main.rounds)}" for found in families)
    note = (
        f"Families of Holm's correction: on {split}, all methods at the same number of rounds "
        f"against {MAIN_LABEL}, controls included; one family per number of rounds (comparisons: "
        f"{sizes}). A method of one round alone is in each of them. Points: difference of the "
        "metric in percentage points with Newcombe's 95 % interval for pairs, over questions with "
        "the answers of all seeds. Only latent, only other: answers that one of the two got right. "
        f"Bootstrap: {BOOTSTRAP_NOTE} "
        "p: exact randomisation test over questions (McNemar's, where there is one seed). Smallest "
        "shown: the difference that so many questions, of which so many are answered differently, "
        "show with a power of 80 % at a level of 5 %; -: none."
    )
    if has_seeds:
        note += (
            " Points over seeds: the same with questions and seeds as random effects, so that the "
            "interval holds for new seeds, too; deviation of seeds: between them, beyond their "
            "questions, in points."
        )
    power = power_sentence(split, [c for found in families for c in found])
    return f"{note} {ENDING_NOTE} {power}"


def power_sentence(split: Split, compared: Sequence[Comparison]) -> str:
    """The differences that a split can show, in plain words."""
    questions = min(c.pair.items for c in compared)
    shown = [c.smallest for c in compared if c.smallest is not None]
    if shown:
        low, high = (f"{100 * value:.1f}" for value in (min(shown), max(shown)))
        smallest = low if low == high else f"{low} to {high}"
        sentence = f"{questions} questions miss differences below {smallest} points more often"
        sentence += " than one time in five."
    else:
        sentence = f"{questions} questions with answers that differ so rarely show no difference."
    if questions >= FEW_QUESTIONS:
        return sentence
    return (
        f"{sentence} {questions} questions are few: the order of methods on {split} is no evidence "
        "by itself."
    )


def score_tables(results: Results) -> list[Table]:
    """One table per split with further scores: means, and paired differences from the main method.

    Differences have bias-corrected and accelerated bootstrap intervals over questions.
    """
    tables = []
    for split in results.splits:
        names = results.score_names(split)
        lines = []
        for method in results.methods:
            for rounds, result in results.over_rounds(split, method).items():
                cells = [_score_cells(results, result, name) for name in names]
                if any(mean != ABSENT for mean, _ in cells):
                    label = methods.describe(method).label
                    scores = (x for pair in cells for x in pair)
                    lines.append((label, str(rounds), *scores, *ending_cells(result)))
        if not lines:
            continue
        columns = (
            column for name in names for column in (name, f"{name}: {MAIN_LABEL} minus this")
        )
        tables.append(
            Table(
                f"{split}: scores in %",
                ("method", "rounds", *columns, *ENDINGS.values()),
                tuple(lines),
                note="Means over all answers. Differences are in percentage points at the same "
                "number of rounds (of a method of one round alone: at the most rounds), with "
                "bias-corrected and accelerated bootstrap intervals (95 %) over questions, each "
                f"with the answers of all seeds; not corrected for their number. {ENDING_NOTE}",
                name=f"scores {split}",
            )
        )
    return tables


def _score_cells(results: Results, result: Result, name: str) -> tuple[str, str]:
    """Mean of a score, and the main method's difference from it."""
    mean = results.mean_score(result, name)
    if mean is None:
        return ABSENT, ABSENT
    rounds = result.rounds
    curve = results.over_rounds(result.split, MAIN)
    if results.has_one_round(result.split, result.method) and curve:
        rounds = max(curve)
    main = curve.get(rounds)
    if main is None or result.method == MAIN:
        return f"{100 * mean:.1f}", ABSENT
    return f"{100 * mean:.1f}", bootstrap_cell(results.differences(main, result, name))


def bootstrap_cell(differences: Differences) -> str:
    """The mean difference with its bootstrap interval; absent where no resample could differ."""
    by_question = differences.by_question()
    if len(by_question) < 2 or np.ptp(by_question) == 0:
        return ABSENT
    return signed_points(by_question.mean(), bootstrap_interval(by_question))


def seed_cells(differences: Differences) -> tuple[str, str]:
    """The difference with seeds as a random effect, and their deviation; absent for few seeds."""
    crossed = differences.crossed()
    if crossed is None or crossed.shape[0] < MIN_SEEDS or crossed.shape[1] < 2:
        return ABSENT, ABSENT
    effect = seed_effect(crossed)
    return signed_points(effect.difference, effect.interval), f"{100 * effect.seed_deviation:.1f}"


def _smallest(pair: PairedDifference) -> float | None:
    return smallest_difference(pair.items, (pair.only_a + pair.only_b) / pair.answers)


def _label(other: Result, rounds: int) -> str:
    label = methods.describe(other.method).label
    return label if other.rounds == rounds else f"{label} ({count_rounds(other.rounds)})"


def p_cell(value: float) -> str:
    """A p-value as text."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
