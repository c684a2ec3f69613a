"""What benchmarks of speed share: options, contenders in turn, the machine's rates, reports.

Floors are counted bytes and FLOPs over rates that this process reached on its own device: those of
data sheets are not reached by any program.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rmas_jax.host.atomic import write_atomic
from rmas_jax.planning.chips import Chip

SIZES = {"cpu": (2**28, 2048), "gpu": (2**32, 8192), "tpu": (2**30, 8192)}  # bytes; matrix rows
# Seconds before a contender, as OpenMP's threads, such as torch's, wait for work in a busy loop at
# first; and seconds that a contender has to wake the machine, whose threads and clock fall asleep.
REST = 0.05
T = TypeVar("T")


class Number(NamedTuple):
    """A whole number of a command line, or several."""

    default: int | Sequence[int]  # a sequence: the option takes one or more
    help: str
    least: int = 1


def command_line(
    module: str, description: str | None, numbers: Mapping[str, Number]
) -> argparse.ArgumentParser:
    """The options of a benchmark: --out, and numbers; others may be added.

    Args:
      module: its name in this package.
      description: its docstring.
      numbers: by option, without dashes.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    for name, (default, meaning, least) in numbers.items():
        shown = default if isinstance(default, int) else " ".join(map(str, default))
        parser.add_argument(
            f"--{name}",
            type=functools.partial(_number, least),
            nargs=None if isinstance(default, int) else "+",
            default=default,
            metavar="N",
            help=f"{meaning} ({shown})",
        )
    return parser


def _number(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
    return int(text)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a command line, for its report."""
    return {name: value for name, value in vars(options).items() if name != "out"}


class Times(NamedTuple):
    """Seconds of the repeats of a contender, or ratios of them."""

    median: float
    low: float
    high: float

    def shown(self, digits: int = 2) -> str:
        """Such as "1.50 (1.45 to 1.62)"."""
        median, low, high = (f"{number:.{digits}f}" for number in self)
        return f"{median} ({low} to {high})"


def results_in_turn(
    contenders: Mapping[str, Callable[[], T]], *, repeats: int, warm_up: int = 1
) -> dict[str, list[T]]:
    """What each contender returns in every repeat after those that warm up.

    All run in turn, from another one on in each repeat, so that the machine's load and clock affect
    all of them; the threads of one have `REST` to fall asleep before the next one starts.
    """
    results: dict[str, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats + warm_up):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(REST)
            result = contenders[name]()
            if repeat >= warm_up:
                results[name].append(result)
    return results


def in_turn(
    contenders: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of the calls of `results_in_turn`, which return when their work is done.

    A short call is repeated for `REST`, and the last one counts.
    """
    timed = {name: functools.partial(_seconds_awake, call) for name, call in contenders.items()}
    return results_in_turn(timed, repeats=repeats, warm_up=warm_up)


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _seconds_awake(call: Callable[[], Any]) -> float:
    """Seconds of the first call that ends `REST` or more after the first one's start."""
    first = time.perf_counter()
    seconds = seconds_of(call)
    while time.perf_counter() - first < REST:
        seconds = seconds_of(call)
    return seconds


def summary(seconds: Sequence[float]) -> Times:
    """Median and range."""
    return Times(statistics.median(seconds), min(seconds), max(seconds))


def speedup(base: Sequence[float], seconds: Sequence[float]) -> Times:
    """How many times as fast as a base, by the ratio in each repeat."""
    return summary([theirs / own for theirs, own in zip(base, seconds, strict=True)])


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
