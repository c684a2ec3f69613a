"""Compares the final pass phrases of the embedded questions."""

from __future__ import annotations

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.data.examples import Example
from rmas_jax.data.relay import parse_answer
from rmas_jax.evaluation.graders.verdict import Verdict, compared


def grade_relay(text: str, example: Example) -> Verdict:
    """Correct if the text names the gold answer's pass phrase."""
    prediction = parse_answer(after_thinking(text) or "")
    return compared(prediction, prediction == parse_answer(example.answer))
