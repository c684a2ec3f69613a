"""Plans or runs in a process of its own, and counts what it compiles.

python tests/executables_worker.py plan|run ARGUMENTS...
"""

from __future__ import annotations

import functools
import json
import sys

import conftest  # noqa: F401  # as many devices as the tests have, and their flags
import jax

from rmas_jax.cli import plan, run
from rmas_jax.host.compilations import EVENT


@functools.cache
def compiled() -> list[float]:
    """The seconds of each compilation of this process from now on; those out of a file are none."""
    seconds: list[float] = []

    def note(event: str, duration: float, **_: object) -> None:
        if event == EVENT:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    return seconds


def main(command: str, *arguments: str) -> None:
    compiled()
    code = {"plan": plan.main, "run": run.main}[command](arguments)
    print(json.dumps({"code": code, "compiled": len(compiled())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
