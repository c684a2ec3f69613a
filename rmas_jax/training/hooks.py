"""Hooks: functions of a step that a training loop calls after every step, one after another.

    def show(event: StepEvent) -> None:
        print(event.done, float(event.metrics["loss"]))

    run_phase(..., hooks=[every(100, show)])

Curves, validation and checkpoints of a phase are hooks too (`training/outer/phase_hooks.py`). They
come first: a user's hook finds the step saved, if it is one that is saved, and what they found in
`StepEvent.results`. An error that a hook raises ends the phase, which can be resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias


@dataclasses.dataclass(frozen=True)
class StepEvent:
    """A step that a phase has taken. All processes of a run see the same ones."""

    step: int  # number of the step in its phase, from 0, as in the curves
    steps: int  # of the phase
    state: Any  # `OuterState` after the step; the next step donates it: copy what is to outlive it
    metrics: Any  # of the step, on the device (`outer_step`); to read them is to wait for the step
    ends: bool  # whether no step follows: it is the phase's last, or SIGTERM came
    # Left by hooks for those after them: "metrics" and "validation", as they go to the curves.
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
    """Calls a hook after the steps for which `is_due` holds."""

    def call(event: StepEvent) -> None:
        if is_due(event):
            hook(event)

    return call


def every(n: int, hook: Hook) -> Hook:
    """Calls a hook after n, 2n, 3n, ... steps of the phase, counted through interruptions.

    Raises:
      ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"every: n must be at least 1, got {n}")
    return when(lambda event: event.done % n == 0, hook)


def at_end(hook: Hook) -> Hook:
    """Calls a hook after the last step that is taken: the phase's last, or the one SIGTERM ends."""
    return when(lambda event: event.ends, hook)
