"""Who is right: graders by data set."""

from __future__ import annotations

from collections.abc import Callable

from rmas_jax.data import relay

# text of a system, gold text -> (what it answers, or None if that cannot be read; is it right)
Grader = Callable[[str, str], tuple[str | None, bool]]


def grade_relay(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if the text names the town that the gold answer names."""
    prediction = relay.parse_answer(text)
    return prediction, prediction is not None and prediction == relay.parse_answer(gold)


GRADERS: dict[str, Grader] = {"relay": grade_relay}
