"""Processes of JAX that tests start together: where they meet, and how long they are waited for."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

IDLE_S = 600  # more than any wait takes on an idle machine


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(*, cache: Path) -> dict[str, str]:
    """Of a process: that of this one, so that both compile alike; programs are kept.

    Collectives between processes must run in one order (Gloo), which more threads than devices
    change.
    """
    here = Path(__file__)
    return {
        **{name: value for name, value in os.environ.items() if name != "NPROC"},
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": f"{here.parents[1]}:{here.parent}",
    }


def limit_s() -> float:
    """How long to wait at most, by how much the machine has to do right now."""
    return IDLE_S * max(1.0, os.getloadavg()[0] / os.cpu_count())


def wait_until(happened: Callable[[], bool], processes: Sequence[subprocess.Popen]) -> None:
    """Waits for what processes bring about, which all run until then."""
    started = time.monotonic()
    while not happened():
        if any(process.poll() is not None for process in processes):
            raise AssertionError(f"a process ended too early: {ended(processes)}")
        if time.monotonic() - started > limit_s():
            raise AssertionError(f"it did not happen in time: {ended(processes, now=True)}")
        time.sleep(0.01)


def ended(processes: Sequence[subprocess.Popen], *, now: bool = False) -> tuple[list[int], list]:
    """Exit codes and outputs of processes, which are killed if they do not end in time."""
    outputs, started = [], time.monotonic()
    try:
        while len(outputs) < len(processes):
            if now or time.monotonic() - started > limit_s():
                for process in processes:
                    process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                outputs.append(processes[len(outputs)].communicate(timeout=5)[0])
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs
