"""Pooled results of an evaluation, ready for claims, tables and figures.

Rows are those of `results.json` and `items.jsonl`; `run_directory` reads and checks them. All seeds
have the same questions, so pooled intervals are over questions, not answers.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from rmas_jax.config.benchmark import ACCURACY, PASS_AT_K
from rmas_jax.evaluation.comparisons import SeedEffect
from rmas_jax.evaluation.methods import SINGLE, ordered
from rmas_jax.evaluation.metrics import (
    Interval,
    PairedDifference,
    paired_difference,
    repeated_interval,
    wilson_interval,
)
from rmas_jax.evaluation.rows import ItemRow, ResultRow, count_correct, is_correct, metric_of
from rmas_jax.reporting.table import ABSENT

Ending = Literal["unparsed", "at_limit", "timeout", "crashed"]
# Column of a row -> how an answer went wrong, apart from being wrong.
ENDINGS: dict[Ending, str] = {
    "unparsed": "unparsed",
    "at_limit": "cut off",
    "timeout": "timed out",
    "crashed": "crashed",
}
ENDING_NOTE = (
    "Unparsed: without an answer that can be read. Cut off: at the limit of tokens. Timed out, "
    "crashed: while it was graded. Of all answers, all rollouts and seeds included; one may count "
    "in several columns."
)
# (seed, id of the question) -> whether the answer is right
Correctness = dict[tuple[int, str | int], bool]


class Split(NamedTuple):
    """The questions of a result: a split of a benchmark."""

    benchmark: str
    name: str

    def __str__(self) -> str:
        return f"{self.benchmark} {self.name}"


def split_of(row: ItemRow | ResultRow) -> Split:
    """The split of a row."""
    return Split(row["benchmark"], row["split"])


@dataclasses.dataclass(frozen=True)
class Result:
    """One method at one number of rounds on one split, pooled over seeds."""

    split: Split
    method: str
    rounds: int
    latent_steps: int
    seeds: tuple[int, ...]
    n: int  # questions, over all seeds
    correct: int  # of them, by the benchmark's metric
    interval: Interval  # 95 %, of the accuracy; see `accuracy_interval`
    by_item: bool  # whether it uses the answers to each item
    tokens: float  # generated text tokens of the whole system per item
    steps: float  # sequential model steps per item
    seconds: float  # wall time per item
    gigaflops: float | None  # model GFLOP per item, see `models.flops`; None: not recorded
    trained_parameters: int | None  # 0: untrained; None: not recorded
    answers: int  # to the questions, all rollouts included
    endings: tuple[int | None, ...]  # answers by ENDINGS; None: not recorded
    retried: int | None  # answers completed by a retry

    @property
    def accuracy(self) -> float:
        """The headline number: the accuracy of first answers, or pass@k."""
        return self.correct / self.n


@dataclasses.dataclass(frozen=True)
class Differences:
    """A score of one result minus that of another, on all answers that both have."""

    values: dict[tuple[int, str | int], float]  # by seed and id of the question

    @classmethod
    def between(
        cls,
        ours: Mapping[tuple[int, str | int], float],
        theirs: Mapping[tuple[int, str | int], float],
    ) -> Differences:
        """Differences of two scores, on the answers of both."""
        return cls({at: float(ours[at]) - float(theirs[at]) for at in ours if at in theirs})

    def by_question(self) -> np.ndarray:
        """[N] means over seeds."""
        found: dict[str | int, list[float]] = {}
        for (_, item), value in self.values.items():
            found.setdefault(item, []).append(value)
        return np.array([statistics.fmean(values) for values in found.values()])

    def crossed(self) -> np.ndarray | None:
        """[S, N] by seed and question; None where a seed lacks a question of another."""
        seeds = sorted({seed for seed, _ in self.values})
        items = list(dict.fromkeys(item for _, item in self.values))
        if len(self.values) != len(seeds) * len(items):
            return None
        return np.array([[self.values[seed, item] for item in items] for seed in seeds])


class Results:
    """Pooled results by split, method and rounds.

    Rows alone lack the correctness of each answer; with items, intervals need no worst case for
    several seeds, and results can be compared by item.
    """

    def __init__(self, rows: Sequence[ResultRow], items: Sequence[ItemRow] = ()):
        groups: dict[tuple[Split, str, int], list[ResultRow]] = {}
        for row in rows:
            groups.setdefault((split_of(row), row["method"], row["rounds"]), []).append(row)
        self._answers = answers_by_result(items, rows)
        self._scores = _scores_by_result(items)
        self._metrics = {split_of(row): metric_label(row) for row in rows}
        self._results = {
            key: _pool(*key, group, self._answers.get(key, {})) for key, group in groups.items()
        }
        self.splits: list[Split] = list(dict.fromkeys(map(split_of, rows)))
        self.methods = ordered(row["method"] for row in rows)

    def metric(self, split: Split) -> str:
        """What `accuracy` is on a split, in words: accuracy, or pass@k."""
        return self._metrics[split]

    @property
    def all(self) -> list[Result]:
        """All results, by split, method and rounds."""
        rank = {name: place for place, name in enumerate(self.methods)}
        return sorted(
            self._results.values(),
            key=lambda r: (self.splits.index(r.split), rank[r.method], r.rounds),
        )

    def answers(self, result: Result) -> Correctness:
        """Whether each answer of a result is right; {} without answers by item."""
        return self._answers.get((result.split, result.method, result.rounds), {})

    def get(self, split: Split, method: str, rounds: int) -> Result | None:
        """The result, or None if not measured."""
        return self._results.get((split, method, rounds))

    def at(self, split: Split, method: str, rounds: int) -> Result | None:
        """The result at R rounds; of a method that has one round alone, that one."""
        return self.get(split, method, 1 if self.has_one_round(split, method) else rounds)

    def has_one_round(self, split: Split, method: str) -> bool:
        """Whether a method was measured at one round alone, as an agent alone is."""
        return list(self.over_rounds(split, method)) == [1]

    def over_rounds(self, split: Split, method: str) -> dict[int, Result]:
        """A method's results on a split: rounds -> result, in the order of rounds."""
        return {
            key[2]: self._results[key]
            for key in sorted(self._results)
            if key[:2] == (split, method)
        }

    def rounds(self, split: Split) -> list[int]:
        """All numbers of rounds on a split."""
        return sorted({key[2] for key in self._results if key[0] == split})

    def best_single(self, split: Split) -> Result | None:
        """The most accurate single agent."""
        singles = [
            result
            for (at, method, _), result in self._results.items()
            if at == split and method.startswith(SINGLE)
        ]
        return max(singles, key=lambda result: result.accuracy, default=None)

    def compare(self, ours: Result, theirs: Result) -> PairedDifference | None:
        """Accuracy of `ours` minus `theirs`, on questions that both answered with one seed.

        None without such questions, or without answers by item.
        """
        a, b = self.answers(ours), self.answers(theirs)
        shared = [key for key in a if key in b]
        if not shared:
            return None
        items = [item for _, item in shared]
        return paired_difference(
            [a[key] for key in shared], [b[key] for key in shared], items=items
        )

    def score_names(self, split: Split) -> list[str]:
        """Names of the further scores on a split."""
        scores = (found for key, found in self._scores.items() if key[0] == split)
        return sorted({name for found in scores for by_name in found.values() for name in by_name})

    def mean_score(self, result: Result, name: str) -> float | None:
        """Mean of a further score over all answers; None without it."""
        scores = self._scores.get((result.split, result.method, result.rounds), {})
        if not any(name in by_name for by_name in scores.values()):
            return None
        return statistics.fmean(by_name.get(name, 0.0) for by_name in scores.values())

    def differences(self, ours: Result, theirs: Result, score: str | None = None) -> Differences:
        """A score of `ours` minus that of `theirs`, on answers that both have.

        Args:
          ours, theirs: two results.
          score: name of a further score; None: the headline metric.
        """

        def values(result: Result) -> Mapping[tuple[int, str | int], float]:
            if score is None:
                return self.answers(result)
            key = (result.split, result.method, result.rounds)
            return {
                at: by_name.get(score, 0.0) for at, by_name in self._scores.get(key, {}).items()
            }

        return Differences.between(values(ours), values(theirs))


def metric_label(row: ResultRow) -> str:
    """The headline number of a row in words."""
    return f"pass@{row.get('rollouts', 'k')}" if metric_of(row) == PASS_AT_K else ACCURACY


def answers_by_result(
    items: Iterable[ItemRow], rows: Iterable[ResultRow]
) -> dict[tuple[Split, str, int], Correctness]:
    """The answers of each split, method and number of rounds, by the metrics of their rows."""
    metrics = {row["benchmark"]: metric_of(row) for row in rows}
    answers: dict[tuple[Split, str, int], Correctness] = {}
    for item in items:
        key = (split_of(item), item["method"], item["rounds"])
        answers.setdefault(key, {})[item["seed"], item["id"]] = is_correct(
            item, metrics.get(item["benchmark"], ACCURACY)
        )
    return answers


def _scores_by_result(
    items: Iterable[ItemRow],
) -> dict[tuple[Split, str, int], dict[tuple[int, str | int], dict[str, float]]]:
    """The further scores of all answers, by seed and question."""
    scores: dict[tuple[Split, str, int], dict[tuple[int, str | int], dict[str, float]]] = {}
    for item in items:
        key = (split_of(item), item["method"], item["rounds"])
        scores.setdefault(key, {})[item["seed"], item["id"]] = item.get("scores") or {}
    return scores


def accuracy_interval(answers: Correctness) -> Interval:
    """95 % interval of the accuracy of `answers`; those to one question are one cluster."""
    counts: dict[Any, list[int]] = {}
    for (_, item), is_right in answers.items():
        count = counts.setdefault(item, [0, 0])
        count[0] += is_right
        count[1] += 1
    return repeated_interval(*zip(*counts.values(), strict=True))


def _pool(
    split: Split, method: str, rounds: int, rows: list[ResultRow], answers: Correctness
) -> Result:
    n, correct = sum(row["n"] for row in rows), sum(map(count_correct, rows))
    seeds = tuple(sorted({row["seed"] for row in rows}))
    by_item = len(answers) == n
    if by_item:
        interval = accuracy_interval(answers)
    else:  # the widest possible one: all seeds give the same answers
        interval = wilson_interval(correct / len(seeds), n / len(seeds))

    def mean_per_item(
        column: Literal["tokens_per_item", "steps_per_item", "seconds_per_item", "flops_per_item"],
    ) -> float:
        return sum(row[column] * row["n"] for row in rows) / n

    def count(column: Ending | Literal["answer_retry"]) -> int | None:
        found = [cast("int | None", row.get(column)) for row in rows]
        return None if None in found else sum(filter(None, found))

    has_flops = all("flops_per_item" in row for row in rows)

    return Result(
        split=split,
        method=method,
        rounds=rounds,
        latent_steps=rows[0]["latent_steps"],
        seeds=seeds,
        n=n,
        correct=correct,
        interval=interval,
        by_item=by_item,
        tokens=mean_per_item("tokens_per_item"),
        steps=mean_per_item("steps_per_item"),
        seconds=mean_per_item("seconds_per_item"),
        gigaflops=mean_per_item("flops_per_item") / 1e9 if has_flops else None,
        trained_parameters=rows[0].get("trained_parameters"),
        answers=sum(row["n"] * row.get("rollouts", 1) for row in rows),
        endings=tuple(count(column) for column in ENDINGS),
        retried=count("answer_retry"),
    )


def ending_cells(*results: Result) -> tuple[str, ...]:
    """The endings of the answers of all these results together, as text, in order of ENDINGS."""
    columns = zip(*(result.endings for result in results), strict=True)
    return tuple(
        ABSENT if None in counts else f"{sum(filter(None, counts)):,}" for counts in columns
    )


def count_rounds(*rounds: int) -> str:
    """`1 round`, `3 rounds`, or a list of rounds: `1, 2, 3 rounds`."""
    return f"{', '.join(map(str, rounds))} round{'s' * (rounds != (1,))}"


def points(pair: PairedDifference | SeedEffect) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    return signed_points(pair.difference, pair.interval)


def signed_points(difference: float, interval: Interval) -> str:
    """A difference of fractions in percentage points, with its interval."""
    low, high = interval
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def three_digits(value: float) -> str:
    """A cost as text: three significant digits, whole above 100, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")
