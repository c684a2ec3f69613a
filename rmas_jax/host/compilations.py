"""Counts the programs that come into being in this process, for example for new shapes."""

from __future__ import annotations

import functools

import jax

# A public event, see jax.monitoring: once per program, also if it is in the cache on disk.
EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[float] = []  # one count per process, which has one compiler


@functools.cache
def _listen() -> None:
    def note(event: str, duration_secs: float, **_: object) -> None:
        if event == EVENT:
            _seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)


def note_loaded(seconds: float) -> None:
    """Counts a program that was loaded from a file."""
    _seen.append(seconds)


def compilations() -> int:
    """Programs compiled, or loaded from the compilation cache or a file, since the first call.

    Compare two calls: if their results are equal, the code between them compiled nothing.
    """
    _listen()
    return len(_seen)
