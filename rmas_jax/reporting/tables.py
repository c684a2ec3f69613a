"""Tables of a run: their content.

Builders take pooled results, or the rows of `results.json` or `items.jsonl`, and return `Table`s.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.comparisons import student_interval
from rmas_jax.evaluation.metrics import Interval
from rmas_jax.evaluation.rows import ItemRow, ResultRow, count_correct
from rmas_jax.reporting.paper import Quantity, paper_cell
from rmas_jax.reporting.results import (
    ENDING_NOTE,
    ENDINGS,
    Result,
    Results,
    Split,
    count_rounds,
    ending_cells,
    metric_label,
    split_of,
    three_digits,
)
from rmas_jax.reporting.table import ABSENT, TERMINAL_WIDTH, Table

SPLIT = ("benchmark", "split")  # column headers of a split


def method_table(rows: Sequence[ResultRow]) -> Table:
    """Each method's name in files, label in tables and meaning."""
    described = (
        (name, methods.describe(name)) for name in methods.ordered(row["method"] for row in rows)
    )
    lines = ((name, method.label, method.meaning) for name, method in described)
    header = ("name in files", "label", "meaning")
    return Table("Methods", header, tuple(lines), text_columns=3, name="methods")


def benchmark_table(rows: Sequence[ResultRow]) -> Table:
    """Each benchmark's headline number, grader and description."""
    lines = {
        row["benchmark"]: (
            row["benchmark"],
            metric_label(row),
            row.get("grader") or ABSENT,
            row.get("description") or ABSENT,
        )
        for row in rows
    }
    header = ("name", "headline number", "grader", "description")
    return Table("Benchmarks", header, tuple(lines.values()), text_columns=4, name="benchmarks")


PAPER_NOTE = "Paper: its value on that benchmark, of each of its systems that has one."


def accuracy_tables(results: Results) -> list[Table]:
    """One table per split: the headline number of methods and rounds, in percent with its interval.

    Beside it, how answers ended, and the paper's values if it has any.
    """
    return [_accuracy_table(results, split) for split in results.splits]


def _accuracy_table(results: Results, split: Split, *, is_short: bool = False) -> Table:
    """The table of a split; a short one has neither retries nor values of the paper."""
    found = [result for result in results.all if result.split == split]
    more: dict[str, list[str]] = {}
    if not is_short:
        more["retried"] = [ABSENT if r.retried is None else f"{r.retried:,}" for r in found]
        paper = [paper_cell(split.benchmark, r.method, r.rounds) or ABSENT for r in found]
        if set(paper) != {ABSENT}:
            more["paper"] = paper
    lines = []
    for i, result in enumerate(found):
        low, high = result.interval
        line = (
            methods.describe(result.method).label,
            str(result.rounds),
            f"{100 * result.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{result.answers:,}",
            *ending_cells(result),
        )
        lines.append((*line, *(column[i] for column in more.values())))
    header = ("method", "rounds", "correct", "answers", *ENDINGS.values(), *more)
    notes = [_conditions(results, split), ENDING_NOTE, *([PAPER_NOTE] if "paper" in more else [])]
    return Table(
        f"{split}: {results.metric(split)} in %, [95 % Wilson interval]",
        header,
        (*lines,),
        note=" ".join(notes),
        name=f"accuracy {split}",
    )


def rollout_table(results: Results, rows: Sequence[ResultRow]) -> Table | None:
    """Questions with several answers, and pass@k where it is the metric; None without any."""
    groups: dict[tuple[Split, str, int], list[ResultRow]] = {}
    for row in rows:
        if "rollouts" in row:
            groups.setdefault((split_of(row), row["method"], row["rounds"]), []).append(row)
    if not groups:
        return None
    columns: dict[Literal["accuracy", "rollout_accuracy", "pass_at_k"], str] = {
        "accuracy": "first answer",
        "rollout_accuracy": "mean answer",
    }
    if any("pass_at_k" in row for own in groups.values() for row in own):
        columns["pass_at_k"] = "pass@k"
    lines = [
        (
            *result.split,
            methods.describe(result.method).label,
            str(result.rounds),
            str(row["seed"]),
            str(row["rollouts"]),
            *(f"{100 * row[c]:.1f}" if c in row else ABSENT for c in columns),
            *(str(row[column]) if column in row else ABSENT for column in ENDINGS),
        )
        for result in results.all
        for row in groups.get((result.split, result.method, result.rounds), ())
    ]
    header = (*SPLIT, "method", "rounds", "seed", "k", *columns.values(), *ENDINGS.values())
    return Table(
        "Several answers to a question, correct in %",
        header,
        (*lines,),
        text_columns=3,
        note=ENDING_NOTE,
        name="rollouts",
    )


# Quantity -> column with the paper's values, where it has any.
PAPER_COSTS: dict[Quantity, str] = {
    "tokens": "paper: tokens",
    "seconds": "paper: seconds for all items",
}


COST_NOTE = (
    "Tokens: written by all agents. Steps: the longest chain of model steps in which each needs "
    "the one before; agents, and answers to one question, that do not wait for each other count as "
    "the longest of them. GFLOP: 10^9 model FLOPs of useful work, of all agents: prompts, "
    "thoughts, links, texts; neither padding nor repeated reading counts. Of several answers to a "
    "question, accuracy has the cost of the first. pass@k has that of all k: tokens and GFLOP are "
    "sums; steps are those of the longest. Seconds: wall time, of all answers. Trained parameters: "
    "those of the links, or of the adapter, that the method uses."
)


def cost_tables(results: Results) -> list[Table]:
    """One table per split: tokens, steps, GFLOP and seconds per item, their ratios to text, and the
    parameters that were trained.

    Ratios are to the text channel at the same rounds; 0.25x is a quarter of its cost.
    """
    ratios = (f"{cost} / text" for cost in COSTS)
    header = ("method", "rounds", *COSTS, *ratios, "trained parameters")
    tables = []
    for split in results.splits:
        found = [result for result in results.all if result.split == split]
        paper = {
            header: [
                paper_cell(split.benchmark, result.method, result.rounds, quantity) or ABSENT
                for result in found
            ]
            for quantity, header in PAPER_COSTS.items()
        }
        paper = {header: cells for header, cells in paper.items() if set(cells) != {ABSENT}}
        lines = [
            (
                methods.describe(result.method).label,
                str(result.rounds),
                *_costs(result),
                *_ratios(result, results),
                ABSENT if result.trained_parameters is None else f"{result.trained_parameters:,}",
                *(cells[i] for cells in paper.values()),
            )
            for i, result in enumerate(found)
        ]
        tables.append(
            Table(
                f"{split}: cost per item, and ratio to text at the same rounds",
                (*header, *paper),
                (*lines,),
                note=COST_NOTE,
                name=f"cost {split}",
            )
        )
    return tables


def difficulty_tables(results: Results, items: Sequence[ItemRow]) -> list[Table]:
    """One table per split: methods and rounds by difficulty, accuracy in percent."""
    counts: dict[tuple[Split, str, int, int], list[bool]] = {}
    for item in items:
        key = (split_of(item), item["method"], item["rounds"], item["difficulty"])
        counts.setdefault(key, []).append(item["correct"])
    tables = []
    for split in dict.fromkeys(map(split_of, items)):
        here = {key[1:]: answers for key, answers in counts.items() if key[0] == split}
        levels = sorted({key[2] for key in here})
        lines = []
        for method in methods.ordered(key[0] for key in here):
            for rounds in sorted({key[1] for key in here if key[0] == method}):
                cells = (
                    _percent(here[method, rounds, level])
                    if (method, rounds, level) in here
                    else ABSENT
                    for level in levels
                )
                result = results.get(split, method, rounds)
                ended = ending_cells(result) if result else (ABSENT,) * len(ENDINGS)
                lines.append((methods.describe(method).label, str(rounds), *cells, *ended))
        sizes = [len(answers) for answers in here.values()]
        by_level = (f"difficulty {level}" for level in levels)
        header = ("method", "rounds", *by_level, *ENDINGS.values())
        note = f"Answers per cell: {min(sizes)} to {max(sizes)}. {ENDING_NOTE}"
        title, name = f"{split}: accuracy in % by difficulty", f"difficulty {split}"
        tables.append(Table(title, header, (*lines,), note=note, name=name))
    return tables


@dataclasses.dataclass(frozen=True)
class SeedSpread:
    """Headline number of one method at one number of rounds on one split, over seeds."""

    split: Split
    method: str
    rounds: int
    seeds: int
    mean: float
    low: float  # least accurate seed
    high: float  # most accurate seed
    interval: Interval | None  # 95 %, of the mean over new seeds; None with one seed


def across_seeds(rows: Sequence[ResultRow]) -> list[SeedSpread]:
    """Variation of the headline number over seeds, with equal weights; see `student_interval`."""
    groups: dict[tuple[Split, str, int], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((split_of(row), row["method"], row["rounds"]), []).append(row)
    found = []
    for key, own in groups.items():
        values = [count_correct(row) / row["n"] for row in own]
        mean, interval = statistics.fmean(values), None
        if len(values) > 1:
            interval = student_interval(
                mean,
                statistics.stdev(values) / math.sqrt(len(values)),
                len(values) - 1,
                questions=min(row["n"] for row in own),
            )
        found.append(SeedSpread(*key, len(values), mean, min(values), max(values), interval))
    return found


def seed_table(results: Results, rows: Sequence[ResultRow]) -> Table | None:
    """Accuracy over seeds; None if every measurement has one seed only."""
    spreads = {(s.split, s.method, s.rounds): s for s in across_seeds(rows) if s.interval}
    if not spreads:
        return None
    lines = []
    for result in results.all:
        spread = spreads.get((result.split, result.method, result.rounds))
        if spread and spread.interval:
            low, high = spread.interval
            lines.append(
                (
                    *spread.split,
                    methods.describe(spread.method).label,
                    str(spread.rounds),
                    str(spread.seeds),
                    f"{100 * spread.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                    f"{100 * spread.low:.1f} to {100 * spread.high:.1f}",
                    *ending_cells(result),
                )
            )
    return Table(
        "Correct in % over seeds",
        (*SPLIT, "method", "rounds", "seeds", "mean", "range", *ENDINGS.values()),
        (*lines,),
        text_columns=3,
        note="Mean with Student's 95 % interval over new seeds on the same questions, at least as "
        f"wide as these questions allow where no seed differs. {ENDING_NOTE}",
        name="seeds",
    )


def terminal_table(results: Results, width: int = TERMINAL_WIDTH) -> str:
    """Accuracy and endings, and cost at the last round, per split, in at most `width` columns."""
    blocks = []
    for split in results.splits:
        blocks.append(_accuracy_table(results, split, is_short=True).to_text(width))
        last = results.rounds(split)[-1]
        costs = [
            (
                methods.describe(method).label,
                *(
                    f"{cost} ({ratio})"
                    for cost, ratio in zip(_costs(result), _ratios(result, results), strict=True)
                ),
            )
            for method in results.methods
            if (result := results.get(split, method, last))
        ]
        title = f"{split}: cost per item at {count_rounds(last)} (of text)"
        blocks.append(Table(title, ("method", *COSTS), (*costs,)).to_text(width))
    return "\n\n".join(blocks)


def _conditions(results: Results, split: Split) -> str:
    """Numbers of answers, seeds and latent steps of a split's results."""
    here = [r for method in results.methods for r in results.over_rounds(split, method).values()]
    sizes = sorted({result.n for result in here})
    seeds = sorted({seed for result in here for seed in result.seeds})
    steps = sorted({r.latent_steps for r in here if r.method in (methods.LATENT, methods.ALIGNED)})
    span = " to ".join(map(str, (sizes[0], sizes[-1])[: len(sizes)]))
    parts = [f"questions per cell, over all seeds: {span}"]
    parts.append(f"seed{'s' * (len(seeds) > 1)}: {', '.join(map(str, seeds))}")
    if steps:
        parts.append(f"latent steps: {', '.join(map(str, steps))}")
    note = "; ".join(parts)
    note = f"{note[0].upper()}{note[1:]}."
    if len(seeds) > 1:
        if all(result.by_item for result in here):
            note += " Intervals are over questions, each with the answers of all seeds."
        else:
            note += (
                " Answers by question are not at hand: intervals are over questions as if all "
                "seeds had answered alike, which is the widest they can be."
            )
    return note


# Column -> the cost per item; None where it was not recorded.
COSTS: dict[str, Callable[[Result], float | None]] = {
    "tokens": lambda result: result.tokens,
    "steps": lambda result: result.steps,
    "GFLOP": lambda result: result.gigaflops,
    "seconds": lambda result: result.seconds,
}


def _costs(result: Result) -> tuple[str, ...]:
    costs = (cost_of(result) for cost_of in COSTS.values())
    return tuple(ABSENT if cost is None else three_digits(cost) for cost in costs)


def _ratios(result: Result, results: Results) -> tuple[str, ...]:
    text = results.get(result.split, methods.TEXT, result.rounds)
    if text is None:
        return (ABSENT,) * len(COSTS)
    pairs = ((cost_of(result), cost_of(text)) for cost_of in COSTS.values())
    return tuple(
        f"{cost / base:.2f}x" if cost is not None and base else ABSENT for cost, base in pairs
    )


def _percent(answers: Sequence[bool]) -> str:
    return f"{100 * sum(answers) / len(answers):.1f}"
