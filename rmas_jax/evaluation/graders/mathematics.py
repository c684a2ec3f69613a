"""Compares answers as mathematics."""

from __future__ import annotations

import re

from rmas_jax.evaluation.graders.marked import answer_of, find_answer
from rmas_jax.evaluation.graders.text import grade_text


def expression_of(text: str) -> str | None:
    r"""The answer of a text, if it may be mathematics; None for prose without a box.

    Without a box, the whole text must be an expression, as a number in prose is ambiguous: no two
    letters in a row, except in names of LaTeX commands, and no sentence punctuation.
    """
    found = find_answer(text)
    if found is None:
        return None
    answer = found.answer
    if not found.is_marked:
        answer = re.sub(r"^\\\((.*)\\\)$|^\\\[(.*)\\\]$|^\$(.*)\$$", r"\1\2\3", answer)
        if re.search(r"[^\W\d_]{2}|\\text|[$?:;]", re.sub(r"\\(?!text)[A-Za-z]+", " ", answer)):
            return None
    return answer.strip().removesuffix(".") or None


def grade_math(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both answer the same text, or expressions equal to math-verify; on the main thread.

    A system's answer is parsed as a whole: math-verify's search for a number in unparsable text,
    which serves for the gold answer, would take the last one of any text.
    """
    import math_verify  # an extra, and slow to import

    prediction, is_right = grade_text(text, gold)
    given, wanted = expression_of(text), answer_of(gold)
    if is_right or given is None or wanted is None:
        return prediction, is_right
    found = math_verify.parse(
        f"${given}$",
        extraction_config=[math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
    )
    expected = math_verify.parse(f"${wanted}$")
    return prediction, bool(expected and found) and math_verify.verify(expected, found)
