"""Compares answers as mathematics, exactly.

This file finds the answers and bounds them; processes that can be killed (`workers`) read and
compare them by the rules of `exact`.
"""

from __future__ import annotations

import re

from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.marked import Found, find_answer
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict
from rmas_jax.evaluation.graders.workers import POOL

MOST_CHARACTERS = 2000  # of an answer
MOST_DEPTH = 50  # of brackets in each other


def grade_math(text: str, example: Example) -> Verdict:
    """Correct if both answers are equal by the rules of `exact`.

    A comparison that takes too long or too much memory is a timeout or a crash, never an answer;
    an answer in no known notation is unparsed, and so is prose without a box.
    """
    found, gold = _expression_of(text), find_answer(example.answer)
    if found is None or found.is_hedged:
        return Verdict(None, Outcome.UNPARSED)
    if gold is None:
        return Verdict(found.answer, Outcome.WRONG, "the gold answer is empty")
    given, wanted = found.answer, gold.answer
    if given == wanted:
        return Verdict(given, Outcome.CORRECT)
    for name, answer in (("answer", given), ("gold answer", wanted)):
        if problem := _excess(answer):
            shown = given[:MOST_CHARACTERS]
            return Verdict(shown, Outcome.UNPARSED, f"the {name} must have {problem}")
    if not found.is_marked and _is_prose(given):
        is_equal = _as_text(given) == _as_text(wanted)
        return Verdict(given, Outcome.CORRECT if is_equal else Outcome.UNPARSED)
    outcome, reason = POOL.ask(wanted, given)
    return Verdict(given, outcome, reason)


def reads_math(example: Example) -> bool:
    """Whether a gold answer is an expression, or a few words, that an answer could equal."""
    found = find_answer(example.answer)
    if found is None or _excess(found.answer):
        return False
    return POOL.ask(found.answer, None)[0] is Outcome.CORRECT


def _expression_of(text: str) -> Found | None:
    r"""The answer in a text; dollar signs or \(...\) around the whole mark it, too."""
    found = find_answer(text)
    if found is None or found.is_marked:
        return found
    inside = re.fullmatch(r"\\\((.*)\\\)\.?|\\\[(.*)\\\]\.?|\$+([^$]*)\$+\.?", found.answer)
    answer = next(filter(None, inside.groups()), "").strip() if inside else ""
    return Found(answer, is_marked=not re.search(r"\\[()\[\]]", answer)) if answer else found


def _is_prose(answer: str) -> bool:
    """Whether a text has two letters in a row, beyond LaTeX commands, or a sentence's punctuation.

    A number in prose is ambiguous.
    """
    without_commands = re.sub(r"\\(?!text|mbox)[A-Za-z]+", " ", answer)
    return re.search(r"[^\W\d_]{2}|\\text|\\mbox|[?:;]", without_commands) is not None


def _as_text(answer: str) -> str:
    return re.sub(r"\\text\{(.*)\}", r"\1", answer).strip(" .*`$").casefold()


def _excess(answer: str) -> str:
    """The bound that an answer exceeds; "" for none."""
    if len(answer) > MOST_CHARACTERS:
        return f"at most {MOST_CHARACTERS} characters, got {len(answer)}"
    depth = deepest = 0
    for sign in answer:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    if deepest > MOST_DEPTH:
        return f"at most {MOST_DEPTH} brackets in each other, got {deepest}"
    return ""
