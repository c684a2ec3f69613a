"""Which steps a hook is called after."""

from __future__ import annotations

import pytest

from rmas_jax.training.hooks import StepEvent, at_end, every, when


def steps_of(hook_of, *, steps=7, first=0, last=None):
    """Steps after which a hook is called, of those from `first` to `last`."""
    called = []
    hook = hook_of(lambda event: called.append(event.done))
    last = steps - 1 if last is None else last
    for step in range(first, last + 1):
        hook(StepEvent(step, steps, state=None, metrics=None, ends=step == last))
    return called


def test_every_counts_the_steps_of_the_phase_through_interruptions():
    assert steps_of(lambda hook: every(3, hook)) == [3, 6]
    assert steps_of(lambda hook: every(3, hook), first=4) == [6]
    assert steps_of(lambda hook: every(1, hook)) == [1, 2, 3, 4, 5, 6, 7]
    assert steps_of(lambda hook: every(8, hook)) == []
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        every(0, print)


def test_the_end_is_the_last_step_or_the_one_at_which_the_run_is_stopped():
    assert steps_of(at_end) == [7]
    assert steps_of(at_end, last=3) == [4]
    assert steps_of(lambda hook: when(lambda event: event.is_last, hook)) == [7]
    assert steps_of(lambda hook: when(lambda event: event.is_last, hook), last=3) == []
