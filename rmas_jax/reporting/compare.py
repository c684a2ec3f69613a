"""Compares runs, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.comparisons import MIN_SEEDS, holm, smallest_difference
from rmas_jax.evaluation.metrics import PairedDifference, paired_difference
from rmas_jax.evaluation.rows import metric_of
from rmas_jax.host.errors import InputError
from rmas_jax.reporting.paired import BOOTSTRAP_NOTE, bootstrap_cell, p_cell, seed_cells
from rmas_jax.reporting.paper import paper_cell
from rmas_jax.reporting.results import (
    ENDING_NOTE,
    ENDINGS,
    Correctness,
    Differences,
    Result,
    Results,
    Split,
    count_rounds,
    ending_cells,
    points,
    split_of,
)
from rmas_jax.reporting.run_directory import Run
from rmas_jax.reporting.table import ABSENT, Table
from rmas_jax.reporting.tables import PAPER_NOTE, SPLIT


class Choice(NamedTuple):
    """The cells of a run to compare; None: those that the other run has, too."""

    method: str | None = None
    rounds: int | None = None


class Comparison(NamedTuple):
    """A cell of each of two runs, on the questions that both answered."""

    first: Result
    second: Result
    pair: PairedDifference  # the first minus the second
    differences: Differences  # by the rank of the seed


class Definition(NamedTuple):
    """What two measurements of a split must share to be comparable."""

    version: str | None  # of questions, gold answers and strict grader
    metric: str
    sampling: str


def definitions(run: Run) -> dict[Split, Definition]:
    """Split -> its definition in a run."""
    return {
        split_of(row): Definition(
            row.get("benchmark_version"), metric_of(row), row.get("sampling", "")
        )
        for row in run.results
    }


def shared_cells(
    first: Run,
    second: Run,
    choices: tuple[Choice, Choice] = (Choice(), Choice()),
    *,
    any_sampling: bool = False,
) -> tuple[list[Comparison], list[str]]:
    """Comparisons of cells of two runs, and notes on splits that differ.

    Cells are paired by method and rounds. A method (or number of rounds) that is chosen need not be
    that of the other run. Where no cell is in both runs and neither has a choice of methods (of
    rounds), these are the chosen ones. Answers are paired by question and, with several seeds, by
    the order of the seeds.

    Args:
      first: a run.
      second: the run to compare it with.
      choices: the cells of each run; a field is chosen in both or in neither.
      any_sampling: whether to compare splits whose answers were sampled differently.
    """
    notes, splits = [], []
    ours, theirs = definitions(first), definitions(second)
    for split in (split for split in ours if split in theirs):
        a, b = ours[split], theirs[split]
        apart = _differing(a.sampling, b.sampling), _differing(b.sampling, a.sampling)
        differs = f"its sampling differs: {' against '.join(apart)}"
        if a[:2] != b[:2]:
            what = "questions, gold answers, grader or metric differ"
            notes.append(f"{split}: left out, as its {what}")
        elif a.sampling == b.sampling or any_sampling:
            splits.append(split)
            if a.sampling != b.sampling:
                notes.append(f"{split}: compared although {differs}")
        else:
            notes.append(f"{split}: left out, as {differs} (--any-sampling compares it)")
    both = Results(first.results, first.items), Results(second.results, second.items)
    found = _pairs(both, splits, choices)
    if not found and choices == (Choice(), Choice()):
        found = _pairs(both, splits, _only_choices(both, splits))
    return found, notes


def _only_choices(both: tuple[Results, Results], splits: Sequence[Split]) -> tuple[Choice, Choice]:
    """The one method and the one number of rounds of each run, where neither has several."""
    named = []  # per field: that of each run, or None
    for field in Choice._fields:
        values = [{getattr(r, field) for r in results.all if r.split in splits} for results in both]
        named.append([next(iter(v)) if {*map(len, values)} == {1} else None for v in values])
    first, second = (Choice(*fields) for fields in zip(*named, strict=True))
    return first, second


def _pairs(
    both: tuple[Results, Results], splits: Sequence[Split], choices: tuple[Choice, Choice]
) -> list[Comparison]:
    ours, theirs = (
        {
            # What is chosen is no part of the key: it may differ between the runs.
            (r.split, *(own if asked is None else None for asked, own in parts)): r
            for r in results.all
            for parts in [((choice.method, r.method), (choice.rounds, r.rounds))]
            if r.split in splits and all(asked in (None, own) for asked, own in parts)
        }
        for results, choice in zip(both, choices, strict=True)
    )
    found = []
    for key in (key for key in ours if key in theirs):
        a, b = (
            _by_rank(results.answers(of_run[key]))
            for results, of_run in zip(both, (ours, theirs), strict=True)
        )
        if shared := [at for at in a if at in b]:
            pair = paired_difference(
                [a[at] for at in shared], [b[at] for at in shared], items=[at[1] for at in shared]
            )
            found.append(Comparison(ours[key], theirs[key], pair, Differences.between(a, b)))
    return found


def _differing(sampling: str, other: str) -> str:
    """The settings in a description that another one lacks."""
    others = other.split(", ")
    return ", ".join(part for part in sampling.split(", ") if part not in others) or "none"


def _by_rank(answers: Correctness) -> Correctness:
    """Answers with the rank of their seed in place of the seed."""
    rank = {seed: i for i, seed in enumerate(sorted({seed for seed, _ in answers}))}
    return {(rank[seed], item): correct for (seed, item), correct in answers.items()}


def compare_runs(
    runs: Sequence[Run], choices: Sequence[Choice] = (), *, any_sampling: bool = False
) -> Iterator[Table | str]:
    """Yields two tables for each run against the first one, and notes; see `shared_cells`.

    Args:
      runs: two or more.
      choices: one per run; empty: none.
      any_sampling: see `shared_cells`.

    Raises:
      InputError: two runs have no such cells with answers by question.
    """
    choices = choices or [Choice()] * len(runs)
    for other, choice in zip(runs[1:], choices[1:], strict=True):
        names = (runs[0].directory.resolve().name, other.directory.resolve().name)
        found, notes = shared_cells(runs[0], other, (choices[0], choice), any_sampling=any_sampling)
        yield from notes
        if not found:
            raise InputError(
                f"{runs[0].directory} and {other.directory}: must share a benchmark, split, method "
                f"and number of rounds, each with answers by question; got "
                f"{'; '.join([*notes, *map(_contents, (runs[0], other))])}; --method and --rounds "
                "name cells that differ"
            )
        yield comparison_table(*names, found)
        yield answer_table(*names, found)


def _contents(run: Run) -> str:
    """The methods and rounds of a run, in words."""
    rounds: dict[str, set[int]] = {}
    for row in run.results:
        rounds.setdefault(row["method"], set()).add(row["rounds"])
    cells = (f"{name} at {count_rounds(*sorted(of_it))}" for name, of_it in rounds.items())
    return f"{run.directory.name} has {', '.join(cells) or 'no results'}"


def comparison_table(first: str, second: str, found: Sequence[Comparison]) -> Table:
    """One line per comparison, with Holm's correction over the table."""
    adjusted = holm([comparison.pair.p_value for comparison in found])
    has_seeds = any(seed_cells(c.differences)[0] != ABSENT for c in found)
    lines = []
    for comparison, p_value in zip(found, adjusted, strict=True):
        pair = comparison.pair
        share = (pair.only_a + pair.only_b) / pair.answers
        shown = smallest_difference(pair.items, share)
        line = (
            *comparison.first.split,
            _both(*(methods.describe(r.method).label for r in comparison[:2])),
            _both(*(str(r.rounds) for r in comparison[:2])),
            str(pair.items),
            points(pair),
            bootstrap_cell(comparison.differences),
            f"{pair.only_a} / {pair.only_b}",
            p_cell(p_value),
            ABSENT if shown is None else f"{100 * shown:.1f}",
        )
        lines.append((*line, *seed_cells(comparison.differences)) if has_seeds else line)
    header = (*SPLIT, "method", "rounds", "questions", f"{first} - {second}", "bootstrap")
    header += ("only one right", "p (Holm)", "smallest shown")
    note = (
        "Points are differences of the metric (accuracy, or pass@k) with Newcombe's 95 % intervals "
        f"for pairs, over questions. Bootstrap: {BOOTSTRAP_NOTE} p is McNemar's exact test, "
        "corrected over this table; the smallest difference is what so many questions show with a "
        "power of 80 %."
    )
    if has_seeds:
        header += ("points over seeds", "deviation of seeds")
        note += (
            f" Points over seeds: with questions and seeds as random effects, from {MIN_SEEDS} "
            "seeds on; deviation of seeds: between them, beyond their questions."
        )
    return Table(f"{first} against {second}", header, tuple(lines), text_columns=3, note=note)


def _both(ours: str, theirs: str) -> str:
    return ours if ours == theirs else f"{ours} - {theirs}"


def answer_table(first: str, second: str, found: Sequence[Comparison]) -> Table:
    """The two results of each comparison: accuracy, endings, and the paper's value if any."""
    lines = []
    for comparison in found:
        for name, result in zip((first, second), comparison[:2], strict=True):
            low, high = result.interval
            lines.append(
                (
                    *result.split,
                    name,
                    methods.describe(result.method).label,
                    str(result.rounds),
                    f"{100 * result.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                    f"{result.answers:,}",
                    *ending_cells(result),
                    paper_cell(result.split.benchmark, result.method, result.rounds) or ABSENT,
                )
            )
    header = (*SPLIT, "run", "method", "rounds", "correct", "answers", *ENDINGS.values(), "paper")
    return Table(
        f"{first} and {second}: correct in %, [95 % Wilson interval]",
        header,
        tuple(dict.fromkeys(lines)),
        text_columns=4,
        note=f"The metric is accuracy, or pass@k. {ENDING_NOTE} {PAPER_NOTE}",
    )
