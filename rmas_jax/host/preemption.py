"""SIGTERM as a request: the run finishes and saves its current work, then ends."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_asked = False  # global, as a signal is for the whole process
_points = itertools.count()


class PreemptedError(RuntimeError):
    """SIGTERM ended the run, which can be resumed; the message says from where."""


@contextlib.contextmanager
def sigterm_noted() -> Iterator[None]:
    """A context that records SIGTERM instead of ending the process.

    Several processes need no handler: JAX handles the signal in each of them.
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
    """Whether to end here, after a signal to any process.

    All processes call this at the same points, in the same order, and get the same result.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_points))
    return _asked


def end_if_due(message: str) -> None:
    """Ends the run here after SIGTERM.

    Raises:
      PreemptedError: with this message.
    """
    if end_is_due():
        raise PreemptedError(message)
