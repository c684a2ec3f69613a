"""Pooled results of an evaluation, ready for claims, tables and figures.

Rows are the dictionaries of `results.json` and `items.jsonl`; `run_directory` reads and checks
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rmas_jax.evaluation.metrics import Interval, wilson_interval
from rmas_jax.reporting.methods import SINGLE, ordered

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """One method at one number of rounds on one split, pooled over seeds."""

    split: str
    method: str
    rounds: int
    latent_steps: int
    seeds: tuple[int, ...]
    n: int  # answers, over all seeds
    correct: int
    interval: Interval  # 95 % Wilson interval of the accuracy
    tokens: float  # generated text tokens of the whole system per item
    steps: float  # sequential model steps per item
    seconds: float  # wall time per item

    @property
    def accuracy(self) -> float:
        return self.correct / self.n


class Results:
    """Pooled results by split, method and rounds."""

    def __init__(self, rows: Sequence[Row]):
        groups: dict[tuple[str, str, int], list[Row]] = {}
        for row in rows:
            groups.setdefault((row["split"], row["method"], row["rounds"]), []).append(row)
        self._results = {key: _pool(*key, group) for key, group in groups.items()}
        self.splits = list(dict.fromkeys(row["split"] for row in rows))
        self.methods = ordered(row["method"] for row in rows)

    def get(self, split: str, method: str, rounds: int) -> Result | None:
        """The result, or None where it was not measured."""
        return self._results.get((split, method, rounds))

    def over_rounds(self, split: str, method: str) -> dict[int, Result]:
        """A method's results on a split: rounds -> result, in the order of rounds."""
        return {
            key[2]: self._results[key]
            for key in sorted(self._results)
            if key[:2] == (split, method)
        }

    def rounds(self, split: str) -> list[int]:
        """All numbers of rounds that any method has on a split."""
        return sorted({key[2] for key in self._results if key[0] == split})

    def best_single(self, split: str) -> Result | None:
        """The most accurate agent that answers alone."""
        singles = [
            result
            for (at, method, _), result in self._results.items()
            if at == split and method.startswith(SINGLE)
        ]
        return max(singles, key=lambda result: result.accuracy, default=None)


def _pool(split: str, method: str, rounds: int, rows: list[Row]) -> Result:
    n, correct = sum(row["n"] for row in rows), sum(row["correct"] for row in rows)

    def mean_per_item(column: str) -> float:
        return sum(row[column] * row["n"] for row in rows) / n

    return Result(
        split=split,
        method=method,
        rounds=rounds,
        latent_steps=rows[0]["latent_steps"],
        seeds=tuple(sorted({row["seed"] for row in rows})),
        n=n,
        correct=correct,
        interval=wilson_interval(correct, n),
        tokens=mean_per_item("tokens_per_item"),
        steps=mean_per_item("steps_per_item"),
        seconds=mean_per_item("seconds_per_item"),
    )


def count_rounds(*rounds: int) -> str:
    """`1 round`, `3 rounds`, or a list of rounds: `1, 2, 3 rounds`."""
    return f"{', '.join(map(str, rounds))} round{'s' * (rounds != (1,))}"


def three_digits(value: float) -> str:
    """A cost for the eye: three significant digits, whole above 100, never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")
