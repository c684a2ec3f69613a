"""SIGTERM as a request: the step that runs is finished and saved, then the run ends."""

from __future__ import annotations

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class PreemptedError(RuntimeError):
    """The run was asked to end and can be resumed; the message says from where."""


class Preemption:
    """While open, SIGTERM is noted instead of ending the process.

    With several processes JAX itself listens for the signal, wherever it arrives, and has all of
    them stop at the same step.
    """

    def __init__(self):
        self.asked = False

    def __enter__(self) -> Preemption:
        self._listens = jax.process_count() == 1
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self.asked = True

    def is_due(self, step: int) -> bool:
        """Whether to end after this step; the same in every process."""
        if self._listens:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)
