"""Throughput and memory of the outer loop against upstream's procedure in torch.

    python -m experiments.benchmarks.training --out runs/training

Three random agents of different sizes form a closed chain, teacher-forced, float32, on one CPU,
with the same weights, links and token rows, whose lengths differ by up to a quarter. Upstream's
procedure (upstream_training.py) reads rows one after another and every text as a whole; rmas_jax
pads rows to a batch and reads a text only as far as a latent or a loss needs it. The contenders are

    torch      upstream's procedure: whole prompts in every round, gradient checkpointing
    ours       rmas_jax: `training.outer.outer_step`, with all its metrics
    rounds     the same, recomputing whole rounds in the backward pass: less memory
    parts      the same, accumulating over single rows, as upstream: least memory

Each runs in its own process, in turn with the others, --repeats times. The report has the median
seconds of a step after the first two (one compiles), samples per second and their ratio to torch's
in the same repeat, and the increase of the peak of the resident memory over that before the first
step (Linux). The first repeat compiles, later ones load its programs from the cache, so the lowest
peak is without compilation. Losses of all contenders must agree. Writes training.json and
training.md into --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness, processes
from experiments.benchmarks.harness import Number
from experiments.benchmarks.team import ROLES, SHAPES, Shape, make_team
from experiments.benchmarks.training_steps import jax_steps, torch_steps
from rmas_jax.agents.agent import load_agent

TORCH = "torch"
# Contender -> fields of the phase, from the batch size.
OURS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ours": lambda batch: {},
    "rounds": lambda batch: {"remat": True},
    "parts": lambda batch: {"accumulation": batch},
}
CONTENDERS = (TORCH, *OURS)
MIB = 2**20
LARGEST_GAP = 1e-3  # of losses to torch's, relative
NUMBERS = {
    "batch": Number(8, "samples per step"),
    "text": Number(48, "tokens of the longest texts"),
    "steps": Number(3, "measured per repeat, after two"),
    "repeats": Number(3, "of every contender"),
}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # contender -> what `measure` found, by repeat


def measure(
    contender: str, folder: str, shape_name: str, batch: int, text: int, steps: int
) -> dict[str, Any]:
    """Runs one contender in this process.

    Returns:
      Losses, the first included; seconds of the first step, and the median of all but two; the
      peak of the memory beyond that before the first one.
    """
    shape = dataclasses.replace(SHAPES[shape_name], text=text)
    if contender == TORCH:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        take = torch_steps(shape, Path(folder), batch)
    else:
        take = jax_steps(shape, Path(folder), batch, **OURS[contender](batch))
    before, losses = processes.resident().now, list[float]()
    seconds = [harness.seconds_of(lambda: losses.append(take())) for _ in range(steps + 2)]
    return {
        "contender": contender,
        "losses": losses,
        "first_s": seconds[0],
        "step_s": harness.summary(seconds[2:]).median,
        "peak_mib": (processes.resident().peak - before) / MIB,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page with one table."""
    setting = report["setting"]
    sizes = ", ".join(f"{count / 1e6:.0f}M" for count in setting["parameters"])
    lines = [
        "# Outer loop, teacher-forced",
        "",
        f"Three Llamas of {sizes} parameters, {setting['rounds']} rounds, "
        f"{setting['latent_steps']} latents, batch {setting['batch']}, "
        f"texts of up to {setting['text']} tokens, float32; "
        f"{setting['repeats']} interleaved repeats of {setting['steps']} steps; "
        f"{setting['cores']} CPU cores ({setting['processor']}); torch {setting['torch']}, "
        f"jax {setting['jax']}.",
        "",
    ]
    columns = ("contender", "samples/s", "times torch (range)", "peak MiB", "compiling",
               "first step s")  # fmt: skip
    rows = (
        (
            row["contender"],
            f"{row['samples_per_s']:.2f}",
            harness.Times(row["ratio"], row["ratio_low"], row["ratio_high"]).shown(),
            f"{row['peak_mib']:,.0f}",
            f"{row['compiling_peak_mib']:,.0f}",
            f"{row['first_s']:.1f}",
        )
        for row in report["rows"]
    )
    lines += harness.markdown_table(columns, rows)
    gap = f"Largest relative difference of a loss to torch's: {report['largest_loss_gap']:.1e}."
    return "\n".join([*lines, "", gap, ""])


def summarise(runs: Runs, batch: int) -> list[dict[str, Any]]:
    """A row per contender."""
    seconds = {name: [run["step_s"] for run in of] for name, of in runs.items()}
    rows = []
    for name, of in runs.items():
        ratio = harness.speedup(seconds[TORCH], seconds[name])
        rows.append(
            {
                "contender": name,
                "samples_per_s": batch / harness.summary(seconds[name]).median,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "peak_mib": min(run["peak_mib"] for run in of),
                "compiling_peak_mib": of[0]["peak_mib"],
                "first_s": of[0]["first_s"],
            }
        )
    return rows


def largest_gap(runs: Runs) -> float:
    """The largest relative difference of a loss to torch's."""
    expected = np.array(runs[TORCH][0]["losses"])
    losses = (np.array(run["losses"]) for of in runs.values() for run in of)
    return max(float(np.abs(of / expected - 1).max()) for of in losses)


def run_all(args: argparse.Namespace, folder: str) -> Runs:
    """Runs the contenders in turn, each in a process of its own."""
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
    setting = (folder, args.shape, args.batch, args.text, args.steps)

    def run(contender: str) -> dict[str, Any]:
        found = processes.call(measure, (contender, *setting), cache)
        print(f"{contender}: {found['step_s']:.2f} s per step", file=sys.stderr)
        return found

    calls = {name: functools.partial(run, name) for name in CONTENDERS}
    return harness.results_in_turn(calls, repeats=args.repeats, warm_up=0)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Shape]:
    """The options, and the shape that they name."""
    parser = harness.command_line("training", __doc__, NUMBERS)
    parser.add_argument("--shape", choices=SHAPES, default="training", help="(training)")
    args = parser.parse_args(arguments)
    shape = SHAPES[args.shape]
    least = -(-shape.latent_steps * 4 // 3)  # texts are up to a quarter shorter
    if args.text < least:
        parser.error(f"argument --text: must be at least {least}, got {args.text}")
    return args, shape


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args, shape = parse(arguments)
    import torch

    setting = harness.machine() | harness.settings(args)
    with tempfile.TemporaryDirectory() as folder:
        make_team(shape, Path(folder))
        runs = run_all(args, folder)
        agents = [load_agent(Path(folder) / role) for role in ROLES]
    setting |= {
        "parameters": [sum(x.size for x in jax.tree.leaves(agent)) for agent in agents],
        "rounds": shape.rounds,
        "latent_steps": shape.latent_steps,
        "torch": torch.__version__,
    }
    gap = largest_gap(runs)
    report = {
        "setting": setting,
        "rows": summarise(runs, args.batch),
        "largest_loss_gap": gap,
        "runs": [run for of in runs.values() for run in of],
    }
    page = markdown(report)
    harness.write_report(args.out, "training", report, page)
    print(page)
    if gap > LARGEST_GAP:
        message = f"losses must agree within {LARGEST_GAP:g}, got a difference of {gap:.1e}"
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
