"""Tables of a run: their content.

Builders take pooled results, or the rows of `results.json` or `items.jsonl`, and return `Table`s.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from scipy import stats

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.metrics import Interval
from rmas_jax.evaluation.rows import ItemRow, ResultRow, count_correct
from rmas_jax.reporting.results import (
    Result,
    Results,
    Split,
    count_rounds,
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


def accuracy_tables(results: Results) -> list[Table]:
    """One table per split: methods by rounds, accuracy in percent with its interval."""

    def cell(result: Result) -> str:
        low, high = result.interval
        return f"{100 * result.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    return _by_rounds(results, cell, "in %, [95 % Wilson interval]")


def rollout_table(rows: Sequence[ResultRow]) -> Table | None:
    """Questions with several answers, and pass@k where it is the metric; None without any."""
    several = [row for row in rows if "rollouts" in row]
    if not several:
        return None
    columns: dict[Literal["accuracy", "rollout_accuracy", "pass_at_k"], str] = {
        "accuracy": "first answer",
        "rollout_accuracy": "mean answer",
    }
    if any("pass_at_k" in row for row in several):
        columns["pass_at_k"] = "pass@k"
    order = methods.ordered(row["method"] for row in several)
    several.sort(key=lambda row: (split_of(row), order.index(row["method"]), row["rounds"]))
    lines = [
        (
            *split_of(row),
            methods.describe(row["method"]).label,
            str(row["rounds"]),
            str(row["seed"]),
            str(row["rollouts"]),
            *(f"{100 * row[c]:.1f}" if c in row else ABSENT for c in columns),
        )
        for row in several
    ]
    header = (*SPLIT, "method", "rounds", "seed", "k", *columns.values())
    return Table(
        "Several answers to a question, correct in %",
        header,
        (*lines,),
        text_columns=3,
        name="rollouts",
    )


ENDINGS: dict[Literal["unparsed", "timeout", "crashed", "at_limit", "answer_retry"], str] = {
    "unparsed": "no answer found",
    "timeout": "not graded in time",
    "crashed": "grading crashed",
    "at_limit": "cut off at the limit of tokens",
    "answer_retry": "completed by a retry",
}


def ending_table(rows: Sequence[ResultRow]) -> Table | None:
    """Answers that ended badly, of rows with these counts (older ones have fewer); None without."""
    groups: dict[tuple[Split, str, int], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((split_of(row), row["method"], row["rounds"]), []).append(row)
    splits = list(dict.fromkeys(map(split_of, rows)))
    order = methods.ordered(row["method"] for row in rows)
    lines = []
    for key in sorted(groups, key=lambda k: (splits.index(k[0]), order.index(k[1]), k[2])):
        split, method, rounds = key
        counts = [sum(row.get(column, 0) for row in groups[key]) for column in ENDINGS]
        if any(counts):
            n = sum(row["n"] for row in groups[key])
            label = methods.describe(method).label
            lines.append((*split, label, str(rounds), str(n), *map(str, counts)))
    if not lines:
        return None
    header = (*SPLIT, "method", "rounds", "answers", *ENDINGS.values())
    note = "Methods and rounds that are not listed have none. An answer may count in each column."
    return Table("How answers ended", header, (*lines,), text_columns=3, note=note, name="endings")


def cost_tables(results: Results) -> list[Table]:
    """One table per split: tokens, steps, GFLOP and seconds per item, their ratios to text, and the
    parameters that were trained.

    Ratios are to the text channel at the same rounds; 0.25x is a quarter of its cost.
    """
    ratios = (f"{cost} / text" for cost in COSTS)
    header = ("method", "rounds", *COSTS, *ratios, "trained parameters")
    tables = []
    for split in results.splits:
        lines = [
            (
                methods.describe(method).label,
                str(rounds),
                *_costs(result),
                *_ratios(result, results),
                ABSENT if result.trained_parameters is None else f"{result.trained_parameters:,}",
            )
            for method in results.methods
            for rounds, result in results.over_rounds(split, method).items()
        ]
        tables.append(
            Table(
                f"{split}: cost per item, and ratio to text at the same rounds",
                header,
                (*lines,),
                note="Tokens: written by all agents. Steps: sequential model steps. GFLOP: 10^9 "
                "model FLOPs of useful work, of all agents: prompts, thoughts, links, texts; "
                "neither padding nor repeated reading counts. Seconds: wall time. Trained "
                "parameters: those of the links, or of the adapter, that the method uses.",
                name=f"cost {split}",
            )
        )
    return tables


def difficulty_tables(items: Sequence[ItemRow]) -> list[Table]:
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
                lines.append((methods.describe(method).label, str(rounds), *cells))
        sizes = [len(answers) for answers in here.values()]
        header = ("method", "rounds", *(f"difficulty {level}" for level in levels))
        note = f"Answers per cell: {min(sizes)} to {max(sizes)}."
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
    interval: Interval | None  # 95 % t-interval of the mean; None with one seed


def across_seeds(rows: Sequence[ResultRow]) -> list[SeedSpread]:
    """Variation of the headline number over seeds, with equal weights.

    The t-interval treats seeds as draws from a normal distribution and is cut to [0, 1].
    """
    groups: dict[tuple[Split, str, int], list[float]] = {}
    for row in rows:
        key = (split_of(row), row["method"], row["rounds"])
        groups.setdefault(key, []).append(count_correct(row) / row["n"])
    return [
        SeedSpread(*key, len(values), statistics.fmean(values), min(values), max(values), interval)
        for key, values in groups.items()
        for interval in [_t_interval(values)]
    ]


def seed_table(rows: Sequence[ResultRow]) -> Table | None:
    """Accuracy over seeds; None if every measurement has one seed only."""
    spreads = [spread for spread in across_seeds(rows) if spread.seeds > 1]
    if not spreads:
        return None
    order = methods.ordered(spread.method for spread in spreads)
    splits = list(dict.fromkeys(spread.split for spread in spreads))
    spreads.sort(key=lambda s: (splits.index(s.split), order.index(s.method), s.rounds))
    lines = [
        (
            *spread.split,
            methods.describe(spread.method).label,
            str(spread.rounds),
            str(spread.seeds),
            f"{100 * spread.mean:.1f}",
            f"{100 * spread.low:.1f} to {100 * spread.high:.1f}",
            f"[{100 * spread.interval.low:.1f}, {100 * spread.interval.high:.1f}]",
        )
        for spread in spreads
        if spread.interval
    ]
    return Table(
        "Correct in % over seeds",
        (*SPLIT, "method", "rounds", "seeds", "mean", "range", "95 % t-interval"),
        (*lines,),
        text_columns=3,
        name="seeds",
    )


def terminal_table(results: Results, width: int = TERMINAL_WIDTH) -> str:
    """Accuracy by rounds and cost at the last round, per split, in at most `width` columns."""

    def cell(result: Result) -> str:
        low, high = result.interval
        return f"{100 * result.accuracy:.1f} ({100 * low:.0f}-{100 * high:.0f})"

    blocks = []
    for split, table in zip(
        results.splits, _by_rounds(results, cell, "in % (95 % interval)"), strict=True
    ):
        # Four rounds fit a line of 100 columns; more make another block.
        for start in range(1, len(table.header), 4):
            part = slice(start, start + 4)
            lines = tuple((line[0], *line[part]) for line in table.rows)
            header = (table.header[0], *table.header[part])
            blocks.append(Table(table.title, header, lines).to_text(width))
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


def _by_rounds(results: Results, cell: Callable[[Result], str], unit: str) -> list[Table]:
    tables = []
    for split in results.splits:
        rounds = results.rounds(split)
        lines = []
        for method in results.methods:
            curve = results.over_rounds(split, method)
            if curve:
                cells = (cell(curve[r]) if r in curve else ABSENT for r in rounds)
                lines.append((methods.describe(method).label, *cells))
        header = ("method", *map(count_rounds, rounds))
        tables.append(
            Table(
                f"{split}: {results.metric(split)} {unit}",
                header,
                (*lines,),
                note=_conditions(results, split),
                name=f"accuracy {split}",
            )
        )
    return tables


def _conditions(results: Results, split: Split) -> str:
    """Numbers of answers, seeds and latent steps of a split's results."""
    here = [r for method in results.methods for r in results.over_rounds(split, method).values()]
    sizes = sorted({result.n for result in here})
    seeds = sorted({seed for result in here for seed in result.seeds})
    steps = sorted({r.latent_steps for r in here if r.method in (methods.LATENT, methods.ALIGNED)})
    parts = [f"answers per cell: {' to '.join(map(str, (sizes[0], sizes[-1])[: len(sizes)]))}"]
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


def _t_interval(values: list[float], confidence: float = 0.95) -> Interval | None:
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def _percent(answers: Sequence[bool]) -> str:
    return f"{100 * sum(answers) / len(answers):.1f}"
