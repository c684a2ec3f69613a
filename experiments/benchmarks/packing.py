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

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.decoding import llama_sizes
from rmas_jax.agents.agent import Agent
from rmas_jax.host.atomic import write_atomic
from rmas_jax.models import Decoder, config_from_hf
from rmas_jax.prompts import TokenRows
from rmas_jax.training.data.batches import length_groups
from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.data.packing import packed_batches
from rmas_jax.training.states.token_states import states_before

BATCH_ROWS = 256
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
        "like": lambda: padded_batches(dialogues, length_groups(lengths, 1), batch_tokens),
        "packed": packed,
    }


def measure(
    agent: Agent, dialogues: Dialogues, batch_tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """One row of the table per contender."""
    ways = contenders(dialogues, agent.width, agent.config.num_heads, batch_tokens)
    # A function per contender, because jit caches programs by function.
    read = {name: jax.jit(functools.partial(states_before)) for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + repeats):
        for name, batches in ways.items():
            start = time.perf_counter()
            for batch in batches():
                np.asarray(read[name](agent, *batch))
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, batches in ways.items():
        shapes = [ids.shape for ids, _ in batches()]
        ratios = [a / b for a, b in zip(seconds["like"], seconds[name], strict=True)]
        rows.append(
            {
                "contender": name,
                "padding": 1 - len(dialogues.tokens.ids) / sum(a * b for a, b in shapes),
                "programs": len(set(shapes)),
                "first_seconds": seconds[name][0],
                "first_ratio": ratios[0],
                "seconds": statistics.median(seconds[name][1:]),
                "ratio": statistics.median(ratios[1:]),
                "ratio_range": [min(ratios[1:]), max(ratios[1:])],
            }
        )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The report as a page with one table."""
    lines = [
        "# Packing",
        "",
        f"Llama with {report['parameters']:,} float32 parameters; {report['dialogues']} dialogues "
        f"of {report['mean']} tokens on average, batches of at most {report['batch_tokens']:,}; "
        f"{report['repeats']} interleaved repeats; {report['cores']} CPU cores; "
        f"jax {report['jax']}.",
        "",
        "| lengths | contender | padding | programs | with compiling: s | times like | then: s "
        "| times like (range) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for distribution, rows in report["rows"].items():
        for row in rows:
            low, high = row["ratio_range"]
            lines.append(
                f"| {distribution} | {row['contender']} | {row['padding']:.0%} | {row['programs']} "
                f"| {row['first_seconds']:.1f} | {row['first_ratio']:.2f} | {row['seconds']:.1f} "
                f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
            )
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.packing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--parameters", type=int, default=20_000_000, metavar="N", help="(2e7)")
    out.add_argument("--layers", type=int, default=6, metavar="N", help="(6)")
    out.add_argument("--vocabulary", type=int, default=4000, metavar="N", help="(4000)")
    out.add_argument("--dialogues", type=int, default=200, metavar="N", help="(200)")
    out.add_argument("--mean", type=int, default=200, metavar="TOKENS", help="of a dialogue (200)")
    out.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="(8192)")
    out.add_argument("--repeats", type=int, default=3, metavar="N", help="(3)")
    out.add_argument("--out", type=Path, required=True, help="folder for the report")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = parser().parse_args(arguments)
    counts = ("layers", "vocabulary", "dialogues", "mean", "batch_tokens", "repeats")
    if low := [name for name in counts if getattr(args, name) < 1]:
        print(
            f"error: {', '.join(low)} must be at least 1, got {getattr(args, low[0])}",
            file=sys.stderr,
        )
        return 2
    sizes = llama_sizes(args.parameters, args.layers, args.vocabulary)
    model = Decoder(config_from_hf({"model_type": "llama", **sizes}))
    start = jnp.zeros((1, 2, model.config.width)), jnp.ones((1, 2), bool)
    agent = Agent(model, model.init(jax.random.key(0), *start)["params"])
    rows = {}
    for distribution in ("lognormal", "uniform"):
        dialogues = draw_dialogues(distribution, args.dialogues, args.mean, args.vocabulary)
        rows[distribution] = measure(agent, dialogues, args.batch_tokens, args.repeats)
    report = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(agent)),
        **{name: getattr(args, name) for name in counts},
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "packing.json", json.dumps(report, indent=2) + "\n")
    page = markdown(report)
    write_atomic(args.out / "packing.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
