"""Fresh Python processes for benchmarks: what they print or return, and their memory."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple


class Resident(NamedTuple):
    """The resident memory of a process, mapped pages of files included, in bytes."""

    now: int
    peak: int


def resident() -> Resident:
    """The memory of this process; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return Resident(*(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")))


def run(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What Python prints with these arguments.

    Args:
      arguments: of the command line.
      environment: variables that it has beside those of this process.

    Raises:
      RuntimeError: its exit code is not 0; with the end of what it printed to stderr.
    """
    ended = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        command = " ".join(arguments)
        raise RuntimeError(
            f"python {command} ended with exit code {ended.returncode}:\n{ended.stderr[-4000:]}"
        )
    return ended.stdout


def call(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Calls a function of a module in a process of its own; arguments and result are JSON."""
    module = sys.modules[function.__module__].__spec__  # the name of __main__, too
    assert module is not None, f"{function.__module__} is no module that a process can import"
    place = [__name__, module.name, function.__name__, json.dumps(arguments)]
    return json.loads(run(["-m", *place], environment).splitlines()[-1])


def call_together(function: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """As `call`, with a process for each of several arguments at the same time."""
    with ThreadPoolExecutor(len(arguments)) as threads:
        return list(threads.map(functools.partial(call, function), arguments))


if __name__ == "__main__":
    place, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(place), name)(*json.loads(arguments))))
