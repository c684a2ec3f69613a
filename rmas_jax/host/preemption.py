"""SIGTERM as a request: what runs is finished and saved, then the run ends."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_asked = False  # a signal belongs to the process, and so does what is known of it
_points = itertools.count()


class PreemptedError(RuntimeError):
    """The run was asked to end and can be resumed; the message says from where."""


@contextlib.contextmanager
def sigterm_noted() -> Iterator[None]:
    """In it, SIGTERM is noted instead of ending the process.

    Several processes need no handler: JAX itself listens, in each of them, since they joined.
    """
    global _asked
    if jax.process_count() > 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked = False


def _note(*_: Any) -> None:
    global _asked
    _asked = True


def end_is_due() -> bool:
    """Whether to end here, for a signal to this process or to any of several.

    All processes ask at the same points, one after another, and get the same answer.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_points))
    return _asked


def end_if_due(message: str) -> None:
    """Ends the run here if that is due.

    Raises:
      PreemptedError: with this message.
    """
    if end_is_due():
        raise PreemptedError(message)
