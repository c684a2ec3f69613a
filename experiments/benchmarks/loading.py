"""Host memory and time of loading a checkpoint, relative to the size of its files.

    python -m experiments.benchmarks.loading --out runs/loading

The benchmark writes a random checkpoint of about --parameters bfloat16 weights in --files
safetensors files, and loads it in fresh processes:

    whole           one process, one device, mesh=None
    split           one process, D devices, fsdp=D
    processes       P processes with one device each, fsdp=P: each reads only its share

A CPU's devices use host memory, so a process needs at least the memory of its parameters. The cost
of loading is the remainder: the peak of the resident memory (ru_maxrss, including mapped file
pages), minus the memory before loading, minus the parameters. The report has the peak and this
remainder, each relative to the size of the checkpoint, and the largest part of a parameter (all its
layers, one device) on the host. Writes loading.json and loading.md into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from experiments.benchmarks.decoding import VOCABULARY, llama_sizes
from rmas_jax.host.atomic import write_atomic
from rmas_jax.models import config_from_hf, load_pretrained
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.weights import weight_table
from rmas_jax.sharding import make_mesh

MIB = 2**20


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


def peak_bytes() -> int:
    """The peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """The resident memory of this process now; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def load_here(directory: str, devices: int, process: int, processes: int, port: int) -> None:
    """Loads in a measured process, and prints its numbers as JSON."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    everywhere = devices * processes
    mesh = make_mesh(fsdp=everywhere) if everywhere > 1 else None
    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # allocates JAX's own memory
    before, start = resident_bytes(), time.perf_counter()
    _, params = load_pretrained(directory, "bfloat16", mesh)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    leaves = jax.tree.leaves(params)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    shard = max(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    numbers = {"peak": peak_bytes() - before, "held": held, "largest": shard, "seconds": seconds}
    print(json.dumps(numbers))


def measure(directory: str, devices: int, processes: int) -> dict[str, float]:
    """Loads in fresh processes; returns the numbers of the process with the highest peak."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments.benchmarks.loading", "--load", directory]
    running = [
        subprocess.Popen(
            [*command, *map(str, (devices, process, processes, port))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"a measured process failed: devices={devices}, processes={processes}")
    return max(
        (json.loads(out.strip().splitlines()[-1]) for out in outputs), key=lambda row: row["peak"]
    )


def markdown(report: dict[str, Any]) -> str:
    """The report as a page with one table."""
    lines = [
        "# Loading",
        "",
        f"Llama with {report['checkpoint_bytes'] / MIB:,.0f} MiB of bfloat16 weights in "
        f"{report['files']} files; sizes are relative to the checkpoint; per process.",
        "",
        "| case | peak | parameters held | peak beyond those | largest part | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        shares = [row[name] / report["checkpoint_bytes"] for name in ("peak", "held")]
        lines.append(
            f"| {row['case']} | {shares[0]:.2f} | {shares[1]:.2f} | {shares[0] - shares[1]:.2f} "
            f"| {row['largest'] / report['checkpoint_bytes']:.2f} | {row['seconds']:.1f} |"
        )
    return "\n".join([*lines, ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--parameters", type=int, default=300_000_000, metavar="N", help="(3e8)")
    out.add_argument("--layers", type=int, default=16, metavar="N", help="(16)")
    out.add_argument("--vocabulary", type=int, default=VOCABULARY, metavar="N", help="(32000)")
    out.add_argument("--files", type=int, default=4, metavar="N", help="of the checkpoint (4)")
    out.add_argument("--devices", type=int, default=4, metavar="D", help="of one process (4)")
    out.add_argument("--processes", type=int, default=2, metavar="P", help="(2)")
    out.add_argument("--out", type=Path, help="folder for the report")
    out.add_argument("--load", nargs=5, help=argparse.SUPPRESS)  # inside a measured process
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.load:
        load_here(args.load[0], *map(int, args.load[1:]))
        return 0
    if args.out is None or min(args.files, args.devices, args.processes, args.layers) < 1:
        print("error: --out must be given, and numbers must be at least 1", file=sys.stderr)
        return 2
    sizes = llama_sizes(args.parameters, args.layers, args.vocabulary)
    cases = {
        "whole": (1, 1),
        f"split over {args.devices} devices": (args.devices, 1),
        f"{args.processes} processes": (1, args.processes),
    }
    with tempfile.TemporaryDirectory() as directory:
        size = write_checkpoint(Path(directory), sizes, args.files)
        rows = [{"case": name, **measure(directory, *case)} for name, case in cases.items()]
    settings = {"sizes": sizes, "files": args.files, "cores": os.cpu_count()}
    report = {"checkpoint_bytes": size, **settings, "jax": jax.__version__, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "loading.json", json.dumps(report, indent=2) + "\n")
    page = markdown(report)
    write_atomic(args.out / "loading.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
