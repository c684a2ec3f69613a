"""Compares answers as text."""

from __future__ import annotations

import re
from decimal import Decimal

from rmas_jax.evaluation.graders.marked import find_answer

MAX_NUMBER = 100  # characters


def grade_text(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both answers are equal except for case and spaces.

    A marked number in the gold answer matches with or without separators of thousands.
    """
    given, wanted = find_answer(text), find_answer(gold)
    if given is None or wanted is None:
        return given and given.answer, False
    is_right = given.answer.casefold() == wanted.answer.casefold()
    if not is_right and wanted.is_marked and (number := _number(wanted.answer)) is not None:
        is_right = _number(given.answer) == number
    return given.answer, is_right


def _number(text: str) -> Decimal | None:
    r"""A number such as 72, $1,234.50 or 1{,}234; None for other text."""
    if len(text) > MAX_NUMBER:
        return None
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|,)(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"^\\?\$|\$$", "", text).strip().removesuffix(".")
    return Decimal(text) if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text, re.ASCII) else None
