"""Compares the letters of options."""

from __future__ import annotations

import re

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.letters import letter_of
from rmas_jax.evaluation.graders.marked import boxes, find_answer
from rmas_jax.evaluation.graders.verdict import Verdict, compared

JOIN_WIDTH = 40  # characters around a box that may hold a negation or a further letter
_BETWEEN = re.compile(
    r"[\s$.*]*(?:[,;/&]|,?\s*(?:or|and)\b)[\s$*]*|(?:[ $*]|\\[,;:! ()])*", re.IGNORECASE
)
_FURTHER = re.compile(r"[\s$*]*(?i:or|and)[\s$*]+(?i:option\s+)?\(?[A-HJ-Z](?!\w|\s+[a-z])")
_DENIED = re.compile(r"(?:\bnot|n['\u2019]t)(?:\s+option)?[\s$*:(]*\Z", re.IGNORECASE)


def choice_of(text: str) -> str | None:
    """The chosen letter of a text, see `letter_of`; None if there is none, or several."""
    found, final = find_answer(text), after_thinking(text)
    if found is None or final is None or _is_one_of_several(final):
        return None
    return letter_of(found.answer, is_marked=found.is_marked)


def _is_one_of_several(text: str) -> bool:
    r"""Whether the last box of a text is negated, or joined to a further letter: \boxed{A} or B."""
    last = sorted(boxes(text))[-2:]
    if not last:
        return False
    start, inside, end = last[-1]
    if _DENIED.search(text, max(0, start - JOIN_WIDTH), start) or _FURTHER.match(text, end + 1):
        return True
    _, other, other_end = last[0]
    if not other_end < start < other_end + JOIN_WIDTH:
        return False
    is_joined = _BETWEEN.fullmatch(text, other_end + 1, start) is not None
    return is_joined and text[other:other_end] != text[inside:end]


def grade_choice(text: str, example: Example) -> Verdict:
    """Correct if both choose the same letter, in any notation and case."""
    prediction = choice_of(text)
    return compared(prediction, prediction == choice_of(example.answer))
