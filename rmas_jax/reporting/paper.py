"""Accuracies that the paper reports, with their source tables."""

from __future__ import annotations

import functools
from importlib import resources
from typing import NamedTuple

import yaml


class PaperValue(NamedTuple):
    """A cell of one of the paper's tables."""

    source: str  # "Table 2"
    system: str  # "Sequential Light"
    accuracy: float  # in %


@functools.cache
def _values() -> dict[tuple[str, str, int], list[PaperValue]]:
    text = resources.files(__package__).joinpath("paper.yaml").read_text(encoding="utf-8")
    found: dict[tuple[str, str, int], list[PaperValue]] = {}
    for table in yaml.safe_load(text):
        for method, by_rounds in table["accuracies"].items():
            for rounds, accuracies in by_rounds.items():
                for benchmark, accuracy in zip(table["benchmarks"], accuracies, strict=True):
                    value = PaperValue(table["source"], table["system"], accuracy)
                    found.setdefault((benchmark, method, rounds), []).append(value)
    return found


def paper_values(benchmark: str, method: str, rounds: int) -> list[PaperValue]:
    """The paper's accuracies of a method on a benchmark, of all systems that have one."""
    return _values().get((benchmark, method, rounds), [])
