r"""Compares answers as text: equal except for case, spaces and a font, as in \text{Paris}."""

from __future__ import annotations

import re
from decimal import Decimal

from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.marked import FONT, find_answer
from rmas_jax.evaluation.graders.verdict import Verdict, compared

MAX_NUMBER = 100  # characters
_IN_FONT = re.compile(rf"(?:{FONT})\s*\{{([^{{}}]*)\}}")


def grade_text(text: str, example: Example) -> Verdict:
    r"""Correct if both answers are equal except for case, spaces and the font of a box's content.

    A marked number in the gold answer matches with or without separators of thousands.
    """
    given, wanted = find_answer(text), find_answer(example.answer)
    if given is None or given.is_hedged:
        return compared(None, False)
    if wanted is None:
        return compared(given.answer, False)
    is_equal = _plain(given.answer) == _plain(wanted.answer)
    if not is_equal and wanted.is_marked and (number := _number(wanted.answer)) is not None:
        is_equal = _number(given.answer) == number
    return compared(given.answer, is_equal)


def _plain(answer: str) -> str:
    if in_font := _IN_FONT.fullmatch(answer):
        answer = " ".join(in_font[1].split())
    return answer.casefold()


def _number(text: str) -> Decimal | None:
    r"""A number such as 72, $1,234.50 or 1{,}234; None for other text."""
    if len(text) > MAX_NUMBER:
        return None
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|,)(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"^\\?\$|\$$", "", text).strip().removesuffix(".")
    return Decimal(text) if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text, re.ASCII) else None
