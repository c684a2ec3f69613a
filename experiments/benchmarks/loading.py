"""Host memory and time of loading a checkpoint, relative to the size of its files.

    python -m experiments.benchmarks.loading --out runs/loading

The benchmark writes a random checkpoint of about --parameters bfloat16 weights in --files
safetensors files, and loads it in fresh processes, --repeats times in turn:

    whole           one process, one device, mesh=None
    split           one process, D devices, fsdp=D
    processes       P processes with one device each, fsdp=P: each reads only its share

A CPU's devices use host memory, so a process needs at least the memory of its parameters. The cost
of loading is the remainder: the peak of the resident memory (including mapped file pages), minus
the memory before loading, minus the parameters. The report has the highest peak of a process and
its remainder, each relative to the size of the checkpoint, the largest part of a parameter (all its
layers, one device) on the host, and median and range of the seconds. Writes loading.json and
loading.md into --out.
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from experiments.benchmarks import harness, processes
from experiments.benchmarks.harness import Number
from experiments.benchmarks.llamas import VOCABULARY, llama_sizes
from rmas_jax.models import config_from_hf, load_pretrained
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.weights import weight_table
from rmas_jax.sharding import make_mesh

MIB = 2**20
NUMBERS = {
    "parameters": Number(300_000_000, "approximate number"),
    "layers": Number(16, "of the decoder"),
    "vocabulary": Number(VOCABULARY, "tokens"),
    "files": Number(4, "of the checkpoint"),
    "devices": Number(4, "of one process"),
    "processes": Number(2, "with one device each"),
    "repeats": Number(3, "measured"),
}


def write_checkpoint(directory: Path, sizes: dict[str, int], files: int) -> int:
    """Writes a random Llama in several files with an index; returns its bytes."""
    config = config_from_hf({"model_type": "llama", **sizes})
    shapes = {name: weight.stored_shape for weight in weight_table(config) for name in weight.names}
    # In the order of the layers, as published checkpoints have it.
    names = sorted(shapes, key=lambda name: [int(x) for x in name.split(".") if x.isdigit()])
    random, total = np.random.default_rng(0), 0
    weight_map: dict[str, str] = {}
    for part, chunk in enumerate(np.array_split(np.array(names), files)):
        file = f"model-{part + 1:05}-of-{files:05}.safetensors"
        tensors = {
            str(name): random.random(shapes[str(name)], np.float32).astype(ml_dtypes.bfloat16)
            for name in chunk
        }
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config_to_hf(config)))
    return total


def load_here(
    directory: str, devices: int, process: int, count: int, port: int
) -> dict[str, float]:
    """Loads in this process, one of `count`, which has not used JAX yet.

    Returns:
      Bytes of the peak beyond the memory before, of the parameters on its devices, and of the
      largest of their parts; seconds.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, process)
    everywhere = devices * count
    mesh = make_mesh(fsdp=everywhere) if everywhere > 1 else None
    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # allocates JAX's own memory
    before, start = processes.resident().now, time.perf_counter()
    _, params = load_pretrained(directory, "bfloat16", mesh)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    leaves = jax.tree.leaves(params)
    return {
        "peak": processes.resident().peak - before,
        "held": sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards),
        "largest": max(leaf.addressable_shards[0].data.nbytes for leaf in leaves),
        "seconds": seconds,
    }


def load_afresh(directory: str, devices: int, count: int) -> dict[str, float]:
    """Loads in fresh processes; returns the numbers of the one with the highest peak."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [(directory, devices, process, count, port) for process in range(count)]
    return max(processes.call_together(load_here, arguments), key=lambda of: of["peak"])


def measure(directory: str, devices: int, count: int, repeats: int) -> list[dict[str, Any]]:
    """A row per case."""
    cases = {
        "whole": (1, 1),
        f"split over {devices} devices": (devices, 1),
        f"{count} processes": (1, count),
    }
    contenders = {
        name: functools.partial(load_afresh, directory, *case) for name, case in cases.items()
    }
    loaded = harness.results_in_turn(contenders, repeats=repeats, warm_up=0)
    rows = []
    for name, of in loaded.items():
        times = harness.summary([run["seconds"] for run in of])
        highest = max(of, key=lambda run: run["peak"])
        range_s = [times.low, times.high]
        rows.append({"case": name, **highest, "seconds": times.median, "seconds_range": range_s})
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The report as a page with one table."""
    lines = [
        "# Loading",
        "",
        f"Llama with {report['checkpoint_bytes'] / MIB:,.0f} MiB of bfloat16 weights in "
        f"{report['files']} files; sizes are relative to the checkpoint; per process.",
        "",
    ]
    columns = ("case", "peak", "parameters held", "peak beyond those", "largest part", "seconds")
    rows = []
    for row in report["rows"]:
        peak, held, largest = (
            row[name] / report["checkpoint_bytes"] for name in ("peak", "held", "largest")
        )
        sizes = (f"{share:.2f}" for share in (peak, held, peak - held, largest))
        seconds = harness.Times(row["seconds"], *row["seconds_range"]).shown(1)
        rows.append((row["case"], *sizes, seconds))
    return "\n".join([*lines, *harness.markdown_table(columns, rows), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = harness.command_line("loading", __doc__, NUMBERS).parse_args(arguments)
    machine, sizes = harness.machine(), llama_sizes(args.parameters, args.layers, args.vocabulary)
    with tempfile.TemporaryDirectory() as directory:
        size = write_checkpoint(Path(directory), sizes, args.files)
        rows = measure(directory, args.devices, args.processes, args.repeats)
    setting = {"sizes": sizes, "files": args.files, "repeats": args.repeats, **machine}
    report = {"checkpoint_bytes": size, **setting, "rows": rows}
    page = markdown(report)
    harness.write_report(args.out, "loading", report, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
