"""Reading role texts for the inner loop: packed rows against padded rows of similar length.

    python -m experiments.benchmarks.packing --out runs/packing

A random Llama reads dialogues with lengths drawn from two distributions:

    longest     rows padded to the longest of all
    like        rows padded to the longest of at most four groups of similar length
    packed      several dialogues per row, as in the inner loop (`training/data/packing.py`)

Each batch has at most --batch-tokens tokens, including padding. Contenders run in turn. The report
has medians over --repeats, and ratios to "like" in the same repeat. The first repeat compiles and
is reported separately, because a run reads its texts once. Writes packing.json and packing.md into
--out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Number
from experiments.benchmarks.llamas import random_llama
from rmas_jax.agents.agent import Agent
from rmas_jax.prompts import TokenRows
from rmas_jax.training.data.batches import length_groups
from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.data.packing import packed_batches
from rmas_jax.training.states.token_states import states_before

BATCH_ROWS = 256
LIKE = "like"
NUMBERS = {
    "parameters": Number(20_000_000, "approximate number"),
    "layers": Number(6, "of the decoder"),
    "vocabulary": Number(4000, "tokens"),
    "dialogues": Number(200, "in all"),
    "mean": Number(200, "tokens of a dialogue"),
    "batch-tokens": Number(8192, "of a batch, at most"),
    "repeats": Number(3, "measured, after one that compiles"),
}
Batches = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def draw_dialogues(distribution: str, count: int, mean: int, vocabulary: int) -> Dialogues:
    """Random dialogues; half of each is the role text."""
    random = np.random.default_rng(0)
    if distribution == "lognormal":
        lengths = mean * np.exp(random.normal(-0.18, 0.6, count))
    else:
        lengths = mean * random.uniform(0.3, 1.7, count)
    lengths = np.maximum(lengths.astype(int), 8)
    rows = [random.integers(1, vocabulary, length) for length in lengths]
    return Dialogues(tokens=TokenRows.of(rows), text_lengths=lengths // 2)


def padded_batches(
    dialogues: Dialogues, groups: list[np.ndarray], batch_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One dialogue per row, padded to the longest of its group; the last batch wraps."""
    lengths = dialogues.tokens.lengths
    for group in groups:
        length = lengths[group].max()
        size = min(BATCH_ROWS, max(1, batch_tokens // length), len(group))
        for start in range(0, len(group), size):
            rows = group[np.arange(start, start + size) % len(group)]
            ids, valid = dialogues.tokens.padded(rows, length, left=True)
            yield ids, valid.astype(np.int32)


def contenders(
    dialogues: Dialogues, width: int, heads: int, batch_tokens: int
) -> dict[str, Batches]:
    """Contender -> a function that makes its batches of ids and segments."""
    lengths = dialogues.tokens.lengths

    def packed() -> Iterator[tuple[Any, Any]]:
        for batch in packed_batches(
            dialogues, width=width, heads=heads, batch_tokens=batch_tokens, batch_rows=BATCH_ROWS
        ):
            yield batch.ids, batch.segments

    everything = [np.arange(len(lengths))]
    return {
        "longest": lambda: padded_batches(dialogues, everything, batch_tokens),
        LIKE: lambda: padded_batches(dialogues, length_groups(lengths, 1), batch_tokens),
        "packed": packed,
    }


def measure(
    agent: Agent, dialogues: Dialogues, batch_tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """One row of the table per contender."""
    ways = contenders(dialogues, agent.width, agent.config.num_heads, batch_tokens)

    def read(program: Any, batches: Batches) -> None:
        for batch in batches():
            np.asarray(program(agent, *batch))

    # A function per contender, because jit caches programs by function.
    calls: dict[str, Callable[[], None]] = {
        name: functools.partial(read, jax.jit(functools.partial(states_before)), batches)
        for name, batches in ways.items()
    }
    seconds = harness.in_turn(calls, repeats=1 + repeats, warm_up=0)
    rows = []
    for name, (first, *later) in seconds.items():
        shapes = [ids.shape for ids, _ in ways[name]()]
        compiling, *base = seconds[LIKE]
        ratio = harness.speedup(base, later)
        rows.append(
            {
                "contender": name,
                "padding": 1 - len(dialogues.tokens.ids) / sum(a * b for a, b in shapes),
                "programs": len(set(shapes)),
                "first_seconds": first,
                "first_ratio": compiling / first,
                "seconds": harness.summary(later).median,
                "ratio": ratio.median,
                "ratio_range": [ratio.low, ratio.high],
            }
        )
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page with one table."""
    lines = [
        "# Packing",
        "",
        f"Llama with {report['parameters']:,} float32 parameters; {report['dialogues']} dialogues "
        f"of {report['mean']} tokens on average, batches of at most {report['batch_tokens']:,}; "
        f"{report['repeats']} interleaved repeats; {report['cores']} CPU cores; "
        f"jax {report['jax']}.",
        "",
    ]
    columns = ("lengths", "contender", "padding", "programs", "with compiling: s", "times like",
               "then: s", "times like (range)")  # fmt: skip
    rows = (
        (
            distribution,
            row["contender"],
            f"{row['padding']:.0%}",
            str(row["programs"]),
            f"{row['first_seconds']:.1f}",
            f"{row['first_ratio']:.2f}",
            f"{row['seconds']:.1f}",
            harness.Times(row["ratio"], *row["ratio_range"]).shown(),
        )
        for distribution, of in report["rows"].items()
        for row in of
    )
    return "\n".join([*lines, *harness.markdown_table(columns, rows), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = harness.command_line("packing", __doc__, NUMBERS).parse_args(arguments)
    machine = harness.machine()
    agent, rows = random_llama(args.parameters, args.layers, args.vocabulary), {}
    for distribution in ("lognormal", "uniform"):
        dialogues = draw_dialogues(distribution, args.dialogues, args.mean, args.vocabulary)
        rows[distribution] = measure(agent, dialogues, args.batch_tokens, args.repeats)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(agent))
    report = {**harness.settings(args), **machine, "parameters": parameters, "rows": rows}
    page = markdown(report)
    harness.write_report(args.out, "packing", report, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
