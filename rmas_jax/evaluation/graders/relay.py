"""Compares the final pass phrases of the embedded questions."""

from __future__ import annotations

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.data.relay import parse_answer


def grade_relay(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if the text names the gold answer's pass phrase."""
    prediction = parse_answer(after_thinking(text) or "")
    return prediction, prediction is not None and prediction == parse_answer(gold)
