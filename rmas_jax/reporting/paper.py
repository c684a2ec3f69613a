"""Values that the paper reports, with their source tables."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Literal, NamedTuple

import yaml

Quantity = Literal["accuracy", "tokens", "seconds"]


class PaperValue(NamedTuple):
    """A cell of one of the paper's tables."""

    source: str  # "Table 2"
    system: str  # "Sequential Light"
    value: float


@functools.cache
def _values() -> dict[tuple[Quantity, str, str, int], list[PaperValue]]:
    text = resources.files(__package__).joinpath("paper.yaml").read_text(encoding="utf-8")
    found: dict[tuple[Quantity, str, str, int], list[PaperValue]] = {}
    for table in yaml.safe_load(text):
        source, system, benchmarks = (
            table.pop(name) for name in ("source", "system", "benchmarks")
        )
        for quantity, by_method in table.items():
            for method, by_rounds in by_method.items():
                for rounds, values in by_rounds.items():
                    for benchmark, value in zip(benchmarks, values, strict=True):
                        key = (quantity, benchmark, method, rounds)
                        found.setdefault(key, []).append(PaperValue(source, system, value))
    return found


def paper_values(
    benchmark: str, method: str, rounds: int, quantity: Quantity = "accuracy"
) -> list[PaperValue]:
    """The paper's values of a method on a benchmark, of all systems that have one.

    Args:
      benchmark: its name.
      method: its name in results.
      rounds: R; 1 for an agent alone.
      quantity: accuracy in %; tokens per question; seconds for all questions.
    """
    return _values().get((quantity, benchmark, method, rounds), [])


def paper_cell(benchmark: str, method: str, rounds: int, quantity: Quantity = "accuracy") -> str:
    """The paper's values as text, each with its system and source; "" without any."""
    found = paper_values(benchmark, method, rounds, quantity)
    return "; ".join(f"{v.value:,} ({v.system}, {v.source})" for v in found)
