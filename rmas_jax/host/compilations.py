"""Counts the programs that JAX has compiled in this process, such as for new shapes."""

from __future__ import annotations

import functools

import jax

# Public events, see jax.monitoring; fires for each program, also one that the cache on disk holds.
EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[float] = []  # one count per process, as there is one compiler


@functools.cache
def _listen() -> None:
    def note(event: str, duration_secs: float, **_: object) -> None:
        if event == EVENT:
            _seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)


def compilations() -> int:
    """Programs compiled, or loaded from the compilation cache, since the first call.

    Use differences: code between two calls with the same result compiled nothing.
    """
    _listen()
    return len(_seen)
