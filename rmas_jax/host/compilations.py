"""How many programs JAX has compiled in this process: new shapes show here, and nowhere else."""

from __future__ import annotations

import functools

import jax

# Public events, see jax.monitoring; fires for each program, also one that the cache on disk holds.
EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[float] = []  # a process has one compiler, and so has this count


@functools.cache
def _listen() -> None:
    def note(event: str, duration_secs: float, **_: object) -> None:
        if event == EVENT:
            _seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)


def compilations() -> int:
    """Programs compiled, or loaded from the compilation cache, since the first call of this.

    Differences count: what ran between two calls that give the same number compiled nothing.
    """
    _listen()
    return len(_seen)
