"""Compares answers as text."""

from __future__ import annotations

import re
from decimal import Decimal

from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.marked import find_answer
from rmas_jax.evaluation.graders.verdict import Verdict, compared

MAX_NUMBER = 100  # characters


def grade_text(text: str, example: Example) -> Verdict:
    """Correct if both answers are equal except for case and spaces.

    A marked number in the gold answer matches with or without separators of thousands.
    """
    given, wanted = find_answer(text), find_answer(example.answer)
    if given is None or wanted is None:
        return compared(given and given.answer, False)
    is_equal = given.answer.casefold() == wanted.answer.casefold()
    if not is_equal and wanted.is_marked and (number := _number(wanted.answer)) is not None:
        is_equal = _number(given.answer) == number
    return compared(given.answer, is_equal)


def _number(text: str) -> Decimal | None:
    r"""A number such as 72, $1,234.50 or 1{,}234; None for other text."""
    if len(text) > MAX_NUMBER:
        return None
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|,)(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"^\\?\$|\$$", "", text).strip().removesuffix(".")
    return Decimal(text) if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text, re.ASCII) else None
