"""Latent steps, rounds, answers and training steps of a team, against torch and against floors.

    python -m experiments.benchmarks.rounds --shape 10M --out runs/rounds
    experiments/benchmarks/gpu.sh runs/gpu           all parts at the released Light sizes

Both libraries load the same random agents and links (team.py). Contenders are

    torch      transformers, eager mode, with a cache; training as upstream, rows one by one
    scanned    rmas_jax, layers in a loop
    unrolled   rmas_jax, layers one after another, each with arrays of its own (`Agent.unrolled`)

and run in turn; with --upstream rounds also as "torch, no cache", upstream's procedure. A floor is
the time of `rmas_jax.planning.bounds` at the rates of this device: its copy bandwidth, or that of a
sum if higher, and a product of large matrices, measured before. The practical floor reads weights
at the rate of the fastest products of these shapes and rows (products.py). Parts:

    steps      M latent steps of each agent after its prompt
    answer     tokens of the solver after its prompt
    rounds     R rounds of all agents, up to the solver's prompt of the last one
    costs      rounds of R = 1 to 4 and M = 16, 32, 64, and a line fitted to them
    training   a teacher-forced and an on-policy step of the outer loop

Medians and ranges are without compilation. --profile names what takes longest, by kernel and by
scope (think, read, link, ...), with FLOPs and bytes beside the floor.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import harness, products
from experiments.benchmarks.harness import Number
from experiments.benchmarks.rounds_parts import (
    Bench,
    answer_part,
    costs_part,
    rounds_part,
    steps_part,
    training_part,
)
from experiments.benchmarks.team import ROLES, SHAPES, load_jax_team, make_team

PARTS = ("steps", "answer", "rounds", "costs", "training")
NUMBERS = {
    "batch": Number((1, 8), "batch sizes"),
    "training-batch": Number((8,), "of training steps"),
    "tokens": Number(64, "of the answer", least=2),
    "repeats": Number(5, "measured, after one to warm up"),
}


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    setting = report["setting"]
    lines = [
        f"# Latent rounds, {setting['shape']} agents, {setting['device']}",
        "",
        f"{setting['rounds']} rounds, {setting['latent_steps']} latents, {setting['dtype']}; "
        f"{setting['repeats']} interleaved repeats, medians; jax {setting['jax']}"
        + (f", torch {setting['torch']}" if setting["torch"] else "")
        + f". Rates of this device: {setting['bandwidth'] / 1e9:,.0f} GB/s, "
        f"{setting['peak'] / 1e12:,.1f} TFLOP/s.",
        "",
    ]
    columns = ("part", "batch", "contender", "s", "ms a step", "times the floor", "practical",
               "TFLOP/s", "times torch (range)", "compile s")  # fmt: skip
    rows = []
    for row in report["rows"]:
        ratio = row["times_torch"]
        rows.append(
            (
                row["part"],
                str(row["batch"]),
                row["contender"],
                f"{row['median_s']:.4f}",
                f"{1e3 * row['median_s'] / row['steps']:.3f}" if row["steps"] > 1 else "",
                f"{row['times_floor']:.2f}",
                f"{row['times_practical']:.2f}",
                f"{row['flops'] / row['median_s'] / 1e12:.2f}",
                harness.Times(**ratio).shown() if ratio else "",
                f"{row['lower_s'] + row['compile_s']:.1f}" if row["compile_s"] else "",
            )
        )
    lines += harness.markdown_table(columns, rows)
    return "\n".join([*lines, "", *fitted(report["rows"]), *_products(setting), ""])


def fitted(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What a turn and a latent step cost: a line through all R and M, and the floor's."""
    for batch in dict.fromkeys(row["batch"] for row in rows):
        costs = [row for row in rows if row["batch"] == batch and "latents" in row]
        if not costs:
            continue
        turns = np.array([row["rounds"] * len(ROLES) - 1 for row in costs])  # the last one writes
        steps = turns * np.array([row["latents"] - 1 for row in costs])
        counts = np.stack([np.ones(len(costs)), turns, steps], axis=1)
        seconds, floor = (np.array([row[of] for row in costs]) for of in ("median_s", "floor_s"))
        ours, least = (np.linalg.lstsq(counts, of)[0] for of in (seconds, floor))
        error = np.abs(counts @ ours / seconds - 1).max()
        yield (
            f"Batch {batch}: a line through these costs gives {1e3 * ours[1]:.2f} ms a turn (floor "
            f"{1e3 * least[1]:.2f}) and {1e3 * ours[2]:.3f} ms a latent step (floor "
            f"{1e3 * least[2]:.3f}); no time is more than {error:.1%} from it."
        )
        yield ""


def _products(setting: dict[str, Any]) -> Iterator[str]:
    """The rates behind the practical floors."""
    for batch, of in setting["products"].items():
        columns = ("matrices", "number", *of["ways"])
        yield f"Products of {batch} rows, GB/s of weights; the fastest: {of['rate'] / 1e9:.1f}"
        yield ""
        yield from harness.markdown_table(columns, of["table"])
        yield ""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = harness.command_line("rounds", __doc__, NUMBERS)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="10M", help="of the agents (10M)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    add("--roles", nargs="+", choices=ROLES, default=ROLES, help="of latent steps (all)")
    add("--latents", nargs="+", choices=("teacher_forced", "on_policy"),
        default=("teacher_forced", "on_policy"), help="of training steps (both)")  # fmt: skip
    add("--unrolled", action="store_true", help="adds agents with unrolled layers")
    add("--team", type=Path, metavar="DIR", help="keeps the team there, or takes it from there")
    add("--upstream", action="store_true", help="adds rounds without a cache, in torch")
    add("--no-torch", action="store_true", help="rmas_jax alone")
    add("--profile", action="store_true", help="writes programs, kernels by time, and scopes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = parse(arguments)
    import torch

    shape, machine = SHAPES[args.shape], harness.machine()
    device = "cuda" if machine["platform"] == "gpu" and torch.cuda.is_available() else "cpu"
    chip = harness.measured_chip(shape.dtype)
    memory = "/dev/shm" if device == "cuda" else None  # large checkpoints need no disk
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        folder = args.team or Path(directory)
        if not (folder / f"{ROLES[0]}.pt").exists():
            make_team(shape, folder, device=device)
        system, agents, links = load_jax_team(shape, folder)
        ways = {"scanned": agents}
        if args.unrolled:
            ways["unrolled"] = {role: agent.unrolled() for role, agent in agents.items()}
        team = None
        if not args.no_torch:
            from experiments.benchmarks.torch_team import load_torch_team

            torch.set_num_threads(os.cpu_count() or 1)
            team = load_torch_team(shape, folder, device)
        rates, tables = {}, {}
        for batch in sorted({*args.batch, *args.training_batch}):
            of = products.measure(agents.values(), batch, torch_device=team and device)
            rates[batch] = products.weight_rate(of, shape.dtype)
            table = [list(row) for row in products.product_rows(of, shape.dtype)]
            tables[batch] = {"rate": rates[batch], "ways": [*of[0].seconds], "table": table}
        bench = Bench(
            shape, folder, system, ways, links, team, chip, rates, args.upstream, args.repeats,
            args.out, args.profile,
        )  # fmt: skip
        report: dict[str, Any] = {
            "setting": machine
            | {
                "shape": args.shape,
                "dtype": shape.dtype,
                "rounds": shape.rounds,
                "latent_steps": shape.latent_steps,
                "lengths": dict(shape.lengths),
                "text": shape.text,
                "tokens": args.tokens,
                "repeats": args.repeats,
                "bandwidth": chip.chip_bandwidth,
                "peak": chip.chip_peak[shape.dtype],
                "products": tables,
                "torch": None if team is None else torch.__version__,
            },
            "rows": [],
        }
        for row in _rows(bench, args):
            report["rows"].append(row)
            page = markdown(report)
            harness.write_report(args.out, "rounds", report, page)
    print(page)
    return 0


def _rows(bench: Bench, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for batch in args.batch:
        if "steps" in args.parts:
            yield from steps_part(bench, batch, args.roles)
        if "answer" in args.parts:
            yield from answer_part(bench, batch, args.tokens)
        if "rounds" in args.parts:
            yield from rounds_part(bench, batch)
        if "costs" in args.parts:
            yield from costs_part(bench, batch)
    if "training" in args.parts:
        for batch in args.training_batch:
            for latents in args.latents:
                yield from training_part(bench, batch, latents)


if __name__ == "__main__":
    sys.exit(main())
