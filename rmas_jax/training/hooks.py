"""Hooks: functions that a training loop calls in order after every step.

    def show(event: StepEvent) -> None:
        print(event.done, float(event.metrics["loss"]))

    run_phase(..., hooks=[every(100, show)])

Curves, validation and checkpoints of a phase are hooks too (`training/phases/hooks.py`). They
run first: a user's hook finds their results in `StepEvent.results`, and the step's checkpoint on
disk, if it has one. An error from a hook ends the phase, which can be resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias


@dataclasses.dataclass(frozen=True)
class StepEvent:
    """A finished step of a phase, the same in all processes of a run."""

    step: int  # number of the step in its phase, from 0, as in the curves
    steps: int  # of the phase
    state: Any  # `TrainState` after the step; donated to the next step: copy it to keep it
    metrics: Any  # of the step, on the device (`Trainable.step`); reading them waits for the step
    ends: bool  # whether no step follows: the phase's last one, or SIGTERM
    # Results of earlier hooks for later ones: "metrics" and "validation", as in the curves.
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> int:
        """Steps taken so far in the phase, this one included."""
        return self.step + 1

    @property
    def is_last(self) -> bool:
        """Whether the phase is finished."""
        return self.done == self.steps


Hook: TypeAlias = Callable[[StepEvent], object]


def when(is_due: Callable[[StepEvent], bool], hook: Hook) -> Hook:
    """Calls a hook after the steps where `is_due` is True."""

    def call(event: StepEvent) -> None:
        if is_due(event):
            hook(event)

    return call


def every(n: int, hook: Hook) -> Hook:
    """Calls a hook after n, 2n, 3n, ... steps of the phase; interruptions do not reset the count.

    Raises:
      ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"every: n must be at least 1, got {n}")
    return when(lambda event: event.done % n == 0, hook)


def at_end(hook: Hook) -> Hook:
    """Calls a hook after the last step: the phase's last, or the last before SIGTERM."""
    return when(lambda event: event.ends, hook)
