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
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.team import ROLES, SHAPES, make_team
from experiments.benchmarks.training_steps import jax_steps, torch_steps
from rmas_jax.agents.agent import load_agent
from rmas_jax.host.atomic import write_atomic

SHAPE = SHAPES["training"]
TORCH = "torch"
# Contender -> fields of the phase, from the batch size.
OURS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ours": lambda batch: {},
    "rounds": lambda batch: {"remat": True},
    "parts": lambda batch: {"accumulation": batch},
}
CONTENDERS = (TORCH, *OURS)


def measure(contender: str, folder: Path, batch: int, text: int, steps: int) -> dict[str, Any]:
    """Runs one contender in this process."""
    shape = dataclasses.replace(SHAPE, text=text)
    if contender == TORCH:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        take = torch_steps(shape, folder, batch)
    else:
        take = jax_steps(shape, folder, batch, **OURS[contender](batch))
    before = resident_mib("VmRSS")
    losses, seconds = [], []
    for _ in range(steps + 2):
        start = time.perf_counter()
        losses.append(take())
        seconds.append(time.perf_counter() - start)
    return {
        "contender": contender,
        "losses": losses,
        "first_s": seconds[0],
        "step_s": float(np.median(seconds[2:])),
        "peak_mib": resident_mib("VmHWM") - before,
    }


def resident_mib(field: str) -> float:
    """Resident memory of this process: VmRSS, the current one, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 2**10


def markdown(report: dict[str, Any]) -> str:
    """The report as a page with one table."""
    setting = report["setting"]
    sizes = ", ".join(f"{count / 1e6:.0f}M" for count in setting["parameters"])
    lines = [
        "# Outer loop, teacher-forced",
        "",
        f"Three Llamas of {sizes} parameters, {SHAPE.rounds} rounds, "
        f"{SHAPE.latent_steps} latents, batch {setting['batch']}, "
        f"texts of up to {setting['text']} tokens, float32; "
        f"{setting['repeats']} interleaved repeats of {setting['steps']} steps; "
        f"{setting['cores']} CPU cores ({setting['machine']}); torch {setting['torch']}, "
        f"jax {setting['jax']}.",
        "",
        "| contender | samples/s | times torch (range) | peak MiB | compiling | first step s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['contender']} | {row['samples_per_s']:.2f} | {row['ratio']:.2f} "
        f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) | {row['peak_mib']:,.0f} "
        f"| {row['compiling_peak_mib']:,.0f} | {row['first_s']:.1f} |"
        for row in report["rows"]
    ]
    gap = report["largest_loss_gap"]
    return "\n".join(
        [*lines, "", f"Largest relative difference of a loss to torch's: {gap:.1e}.", ""]
    )


def summarise(runs: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """A row per contender."""
    torch_seconds = np.array([run["step_s"] for run in runs if run["contender"] == TORCH])
    rows = []
    for contender in CONTENDERS:
        own = [run for run in runs if run["contender"] == contender]
        seconds = np.array([run["step_s"] for run in own])
        ratios = torch_seconds / seconds
        rows.append(
            {
                "contender": contender,
                "samples_per_s": batch / float(np.median(seconds)),
                "ratio": float(np.median(ratios)),
                "ratio_low": float(ratios.min()),
                "ratio_high": float(ratios.max()),
                "peak_mib": min(run["peak_mib"] for run in own),
                "compiling_peak_mib": own[0]["peak_mib"],
                "first_s": own[0]["first_s"],
            }
        )
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = functools.partial(out.add_argument, type=int, metavar="N")
    number("--batch", default=8, help="samples per step (8)")
    number("--text", default=48, help="tokens of the longest texts (48)")
    number("--steps", default=3, help="measured steps per repeat (3)")
    number("--repeats", default=3, help="of every contender (3)")
    out.add_argument("--out", type=Path, help="folder for the report")
    out.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)  # in a child process
    out.add_argument("--agents", type=Path, help=argparse.SUPPRESS)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.measure:
        print(json.dumps(measure(args.measure, args.agents, args.batch, args.text, args.steps)))
        return 0
    if args.out is None or min(args.batch, args.steps, args.repeats) < 1:
        print("error: --out must be given, and numbers must be at least 1", file=sys.stderr)
        return 2
    if args.text * 3 // 4 < SHAPE.latent_steps:  # texts are up to a quarter shorter
        least = -(-SHAPE.latent_steps * 4 // 3)
        print(f"error: --text must be at least {least}, got {args.text}", file=sys.stderr)
        return 2
    import torch

    runs = []
    with tempfile.TemporaryDirectory() as directory:
        make_team(SHAPE, Path(directory))
        for repeat in range(args.repeats):
            for contender in CONTENDERS[repeat % 4 :] + CONTENDERS[: repeat % 4]:
                command = [sys.executable, "-m", "experiments.benchmarks.training"]
                command += ["--measure", contender, "--agents", directory]
                command += ["--batch", str(args.batch), "--text", str(args.text)]
                command += ["--steps", str(args.steps)]
                cache = {"JAX_COMPILATION_CACHE_DIR": f"{directory}/compiled"}
                child = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | cache
                )
                runs.append(json.loads(child.stdout.splitlines()[-1]))
                print(f"{contender}: {runs[-1]['step_s']:.2f} s per step", file=sys.stderr)
        counts = [
            sum(x.size for x in jax.tree.leaves(load_agent(Path(directory) / role)))
            for role in ROLES
        ]
    expected = np.array(next(run["losses"] for run in runs if run["contender"] == TORCH))
    gap = max(float(np.abs(np.array(run["losses"]) / expected - 1).max()) for run in runs)
    report = {
        "setting": {
            "parameters": counts,
            "batch": args.batch,
            "text": args.text,
            "steps": args.steps,
            "repeats": args.repeats,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "jax": jax.__version__,
        },
        "rows": summarise(runs, args.batch),
        "largest_loss_gap": gap,
        "runs": runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "training.json", json.dumps(report, indent=2) + "\n")
    page = markdown(report)
    write_atomic(args.out / "training.md", page)
    print(page)
    if gap > 1e-3:
        print(
            f"error: losses must agree within 1e-3, got a difference of {gap:.1e}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
