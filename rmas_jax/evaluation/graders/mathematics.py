"""Compares answers as mathematics."""

from __future__ import annotations

import re

from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.marked import answer_of, find_answer
from rmas_jax.evaluation.graders.text import grade_text
from rmas_jax.evaluation.graders.verdict import Verdict, compared


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


def grade_math(text: str, example: Example) -> Verdict:
    """Correct if both answer the same text, or expressions that math-verify equates.

    A system's answer is parsed as a whole: math-verify's search for a number in unparsable text,
    which serves for the gold answer, would take the last one of any text.
    """
    import math_verify  # an extra, and slow to import

    verdict = grade_text(text, example)
    given, wanted = expression_of(text), answer_of(example.answer)
    if verdict.correct or given is None or wanted is None:
        return verdict
    found = math_verify.parse(
        f"${given}$",
        extraction_config=[math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
    )
    expected = math_verify.parse(f"${wanted}$")
    is_equal = bool(expected and found) and math_verify.verify(expected, found)
    return compared(verdict.prediction, is_equal)
