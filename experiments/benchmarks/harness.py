"""What benchmarks of speed share: contenders in turn, the machine's own rates, profiles, reports.

Floors are counted bytes and FLOPs over rates that this process reached on its own device: those of
data sheets are not reached by any program.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmas_jax.host.atomic import write_atomic
from rmas_jax.planning.chips import Chip

SIZES = {"cpu": (2**28, 2048), "gpu": (2**32, 8192), "tpu": (2**30, 8192)}  # bytes; matrix rows


class Times(NamedTuple):
    """Seconds of the repeats of a contender."""

    median: float
    low: float
    high: float


# Seconds before a contender, as OpenMP's threads, such as torch's, wait for work in a busy loop at
# first; and seconds that a contender has to wake the machine, whose threads and clock fall asleep.
REST = 0.05


def in_turn(
    contenders: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of every repeat of each contender; a call returns when its work is done.

    All run in turn, from another one on in each repeat, so that the machine's load and clock affect
    all of them; the threads of one have `REST` to fall asleep before the next one starts. A short
    call is repeated for as long, and the last one counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats + warm_up):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(REST)
            seconds[name].append(_awake(contenders[name]))
    return {name: of[warm_up:] for name, of in seconds.items()}


def _awake(call: Callable[[], Any]) -> float:
    """Seconds of the first call that ends `REST` or more after the first one's start."""
    first = start = time.perf_counter()
    call()
    while (end := time.perf_counter()) - first < REST:
        start = end
        call()
    return end - start


def summary(seconds: Sequence[float]) -> Times:
    """Median and range."""
    return Times(statistics.median(seconds), min(seconds), max(seconds))


class Compiled(NamedTuple):
    """A compiled function, which waits for its results when called."""

    call: Callable[..., Any]
    lower_s: float
    compile_s: float
    executable: Any


def compiled(function: Any, *args: Any, **options: Any) -> Compiled:
    """Compiles a jitted function for these arguments.

    Args:
      function: the result of `jax.jit`.
      args: as for a call.
      options: keyword arguments, as for a call; static ones are left out of calls.
    """
    start = time.perf_counter()
    lowered = function.lower(*args, **options)
    middle = time.perf_counter()
    executable = lowered.compile()
    end = time.perf_counter()

    def call(*args: Any, **options: Any) -> Any:
        return jax.block_until_ready(executable(*args, **options))

    return Compiled(call, middle - start, end - middle, executable)


def measured_chip(dtype: str) -> Chip:
    """The device of this process by its own rates: of a copy, and of a product of large matrices.

    A copy of n bytes moves 2 n; the faster of a copy and a sum is the bandwidth.
    """
    device = jax.devices()[0]
    size, rows = SIZES[device.platform]
    data = jnp.ones(size // 4, jnp.float32)
    square = jax.random.normal(jax.random.key(0), (rows, rows)).astype(dtype)
    copy = compiled(jax.jit(lambda x: x + 1), data)
    total = compiled(jax.jit(jnp.sum), data)
    product = compiled(jax.jit(lambda x: x @ x), square)
    times = in_turn(
        {
            "copy": lambda: copy.call(data),
            "sum": lambda: total.call(data),
            "product": lambda: product.call(square),
        },
        repeats=9,
        warm_up=2,
    )
    best = {name: min(of) for name, of in times.items()}
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return Chip(
        name=device.device_kind,
        chip_memory=limit,
        chip_bandwidth=max(2 * size / best["copy"], size / best["sum"]),
        chip_peak={dtype: 2 * rows**3 / best["product"]},
        devices=1,
        links=0,
        link=0.0,
        topology=None,
    )


def machine() -> dict[str, Any]:
    """What ran the benchmark."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "load_before": os.getloadavg()[0],
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The runs of a kernel, or of an operation of a program, in a profile."""

    line: str  # of the profile: a stream of the device, or the program's operations
    name: str
    count: int
    seconds: float


def profile(call: Callable[[], Any]) -> list[Kernel]:
    """What ran on the device during a call, the longest first.

    On a CPU these are the instructions of XLA's threads; helpers of its products are not seen.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        traces = sorted(Path(folder).rglob("*.trace.json.gz"))
        if not traces:
            return []
        events = json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]
    processes, lines = {}, {}
    for event in events:
        if event.get("name") == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        if event.get("name") == "thread_name":
            lines[event["pid"], event["tid"]] = event["args"]["name"]
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        line = lines.get((event.get("pid"), event.get("tid")), "")
        on_device = "/device:" in processes.get(event.get("pid"), "") or "XLAEigen" in line
        if event.get("ph") == "X" and on_device:
            found[line, event["name"]].append(event.get("dur", 0) / 1e6)
    kernels = (Kernel(line, name, len(of), sum(of)) for (line, name), of in found.items())
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def write_report(folder: Path, name: str, report: Mapping[str, Any], page: str) -> None:
    """Writes NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_atomic(folder / f"{name}.md", page)
