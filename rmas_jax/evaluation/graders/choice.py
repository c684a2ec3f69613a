"""Compares the letters of options."""

from __future__ import annotations

import re

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.letters import letter_of, stated_letter
from rmas_jax.evaluation.graders.marked import boxes, find_answer
from rmas_jax.evaluation.graders.verdict import Verdict, compared

_FURTHER = re.compile(
    r"[\s$*]*(?:[/,;&]|(?:\\text\{\s*)?(?i:or|and)\b\s*\}?)[\s$*]*(?i:option\s+)?\(?"
    r"[A-HJ-Z](?!\w|\s+[a-z])"
)


def choice_of(text: str) -> str | None:
    """The chosen letter of a text, see `letters`; None if there is none, or several."""
    found, final = find_answer(text), after_thinking(text)
    if found is None or final is None or found.is_hedged or _is_before_a_letter(final):
        return None
    if not found.is_marked and (letter := stated_letter(final)) is not None:
        return letter
    return letter_of(found.answer, is_marked=found.is_marked)


def _is_before_a_letter(text: str) -> bool:
    r"""Whether the last box of a text is joined to a letter: \boxed{A} or B."""
    last = max(boxes(text), default=None)
    return last is not None and _FURTHER.match(text, last[-1] + 1) is not None


def grade_choice(text: str, example: Example) -> Verdict:
    """Correct if both choose the same letter, in any notation and case."""
    prediction = choice_of(text)
    return compared(prediction, prediction == choice_of(example.answer))
