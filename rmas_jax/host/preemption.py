"""SIGTERM as a request to stop: the run completes and saves its current step, then ends."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_received = False  # global, because a signal is for the whole process
_points = itertools.count()


class PreemptedError(RuntimeError):
    """SIGTERM ended the run, which can be resumed; the message names the point."""


@contextlib.contextmanager
def sigterm_noted() -> Iterator[None]:
    """A context that records SIGTERM instead of ending the process.

    Several processes need no handler: JAX handles the signal in each of them.
    """
    global _received
    if jax.process_count() > 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _received = False


def _note(*_: Any) -> None:
    global _received
    _received = True


def end_is_due() -> bool:
    """Whether to end here, because any process has received the signal.

    All processes call it at the same points, in the same order, and get the same result.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_points))
    return _received


def end_if_due(message: str) -> None:
    """Ends the run here after SIGTERM.

    Raises:
      PreemptedError: with this message.
    """
    if end_is_due():
        raise PreemptedError(message)
