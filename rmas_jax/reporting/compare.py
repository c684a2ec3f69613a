"""Compares runs, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.comparisons import holm, smallest_difference
from rmas_jax.evaluation.metrics import PairedDifference, paired_difference
from rmas_jax.evaluation.rows import metric_of
from rmas_jax.host.errors import InputError
from rmas_jax.reporting.paper import paper_values
from rmas_jax.reporting.results import Correctness, Split, answers_by_result, points
from rmas_jax.reporting.run_directory import Run
from rmas_jax.reporting.table import Table

ABSENT = "-"
Cell = tuple[Split, str, int]  # split, method, rounds


class Comparison(NamedTuple):
    """A cell of two runs, on the questions that both answered."""

    split: Split
    method: str
    rounds: int
    pair: PairedDifference  # the first run minus the second


class Definition(NamedTuple):
    """What two measurements of a benchmark must share to be comparable."""

    version: str | None
    metric: str
    sampling: str


def definitions(run: Run) -> dict[str, Definition]:
    """Benchmark -> its definition in a run."""
    return {
        row["benchmark"]: Definition(
            row.get("benchmark_version"), metric_of(row), row.get("sampling", "")
        )
        for row in run.results
    }


def shared_cells(
    first: Run, second: Run, *, any_sampling: bool = False
) -> tuple[list[Comparison], list[str]]:
    """Comparisons of all cells that two runs share, and notes on benchmarks that differ.

    Answers are paired by question and, with several seeds, by the order of the seeds.

    Args:
      first: a run.
      second: the run to compare it with.
      any_sampling: whether to compare benchmarks whose answers were sampled differently.
    """
    notes, left_out = [], set()
    ours, theirs = definitions(first), definitions(second)
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a[:2] != b[:2]:
            left_out.add(name)
            notes.append(f"{name}: left out, as its questions, grader or metric differ")
        elif a.sampling != b.sampling:
            if not any_sampling:
                left_out.add(name)
            done = "compared although" if any_sampling else "left out, as"
            hint = "" if any_sampling else " (--any-sampling compares it)"
            notes.append(
                f"{name}: {done} its sampling differs: {_differing(a.sampling, b.sampling)} "
                f"against {_differing(b.sampling, a.sampling)}{hint}"
            )
    by_cell = [answers_by_result(run.items, run.results) for run in (first, second)]
    found = []
    for split, method, rounds in by_cell[0]:
        if split.benchmark in left_out or (split, method, rounds) not in by_cell[1]:
            continue
        pair = _paired(*(answers[split, method, rounds] for answers in by_cell))
        if pair is not None:
            found.append(Comparison(split, method, rounds, pair))
    return found, notes


def _differing(sampling: str, other: str) -> str:
    """The settings in a description that another one lacks."""
    others = other.split(", ")
    return ", ".join(part for part in sampling.split(", ") if part not in others) or "none"


def _paired(ours: Correctness, theirs: Correctness) -> PairedDifference | None:
    a, b = _by_rank(ours), _by_rank(theirs)
    shared = [key for key in a if key in b]
    if not shared:
        return None
    return paired_difference(
        [a[key] for key in shared], [b[key] for key in shared], items=[key[1] for key in shared]
    )


def _by_rank(answers: Correctness) -> Correctness:
    """Answers with the rank of their seed in place of the seed."""
    rank = {seed: i for i, seed in enumerate(sorted({seed for seed, _ in answers}))}
    return {(rank[seed], item): correct for (seed, item), correct in answers.items()}


def compare_runs(runs: Sequence[Run], *, any_sampling: bool = False) -> Iterator[Table | str]:
    """Yields a table for each run against the first one, and notes; see `shared_cells`.

    Raises:
      InputError: two runs share no measured cell with answers by question.
    """
    for other in runs[1:]:
        names = [run.directory.resolve().name for run in (runs[0], other)]
        found, notes = shared_cells(runs[0], other, any_sampling=any_sampling)
        yield from notes
        if not found:
            raise InputError(
                f"{runs[0].directory} and {other.directory}: must share a benchmark, split, method "
                f"and number of rounds, each with answers by question; got "
                f"{'; '.join(notes) or 'none'}"
            )
        yield comparison_table(names[0], names[1], found)


def comparison_table(first: str, second: str, found: Sequence[Comparison]) -> Table:
    """One line per cell, with Holm's correction over the table, and the paper's value if any."""
    order = methods.ordered(comparison.method for comparison in found)
    rows = sorted(found, key=lambda c: (c.split, order.index(c.method), c.rounds))
    adjusted = holm([comparison.pair.p_value for comparison in rows])
    lines = []
    for comparison, p_value in zip(rows, adjusted, strict=True):
        pair = comparison.pair
        share = (pair.only_a + pair.only_b) / pair.answers
        shown = smallest_difference(pair.items, share)
        lines.append(
            (
                *comparison.split,
                methods.describe(comparison.method).label,
                str(comparison.rounds),
                str(pair.items),
                points(pair),
                f"{pair.only_a} / {pair.only_b}",
                f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001",
                ABSENT if shown is None else f"{100 * shown:.1f}",
                _paper(comparison),
            )
        )
    header = ("benchmark", "split", "method", "rounds", "questions", f"{first} - {second}")
    header += ("only one right", "p (Holm)", "smallest shown", "paper")
    note = (
        "Points are differences of the metric (accuracy, or pass@k) with 95 % paired intervals "
        "over questions; p is McNemar's exact test, corrected over this table; the smallest "
        "difference is what so many questions show with a power of 80 %; the paper's value is an "
        "accuracy in %, with its source."
    )
    return Table(f"{first} against {second}", header, tuple(lines), text_columns=3, note=note)


def _paper(comparison: Comparison) -> str:
    values = paper_values(comparison.split.benchmark, comparison.method, comparison.rounds)
    return "; ".join(f"{v.accuracy:.1f} ({v.system}, {v.source})" for v in values) or ABSENT
