r"""Upstream's lenient comparison, reported beside a strict verdict as `scores["legacy"]`.

It is no grader of a run: it takes 1.2 for 1.8, 1/2 for 4/5, "12 dollars" for "12 years", the first
number of a text for its answer, and a text without a letter for the choice of A. Published numbers
were made with it. Written from a description of upstream's release, so its details may differ; one
does on purpose: thinking blocks, which upstream switches off, are no part of a text here either.

Answer: the last \boxed{...}, else the whole text. Comparison, by type of task:
    math    one of four normal forms agrees (upstream: MATH-500)
    choice  letters A to D agree; where none is found, in the gold answer too, it is A
    others  dates agree, or texts without case, or without punctuation and articles
Code has none: its tests decide.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.evaluation.graders.marked import after_hashes
from rmas_jax.evaluation.graders.qa import exact_match

DEFAULT_CHOICE = "A"
DATES = ("%Y-%m-%d", "%B %d, %Y", "%d %B %Y", "%b %d, %Y", "%d %b %Y", "%m/%d/%Y")
MAX_DATE = 40  # characters
_PLAIN_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_LATEX = re.compile(r"\\left|\\right|\\text|[{}$\s]")
_FIRST_NUMBER = re.compile(r"\\frac\{-?(\d{1,999})\}\{-?(0*[1-9]\d{0,999})\}|(\d+)")
_KEYWORD = re.compile(  # "final choice" and others end in these words
    r"\b(?:choice|option|answer)(?:\s{1,9}is\b)?[\s:=*({\[]{0,20}\b([A-D])\b",
    re.IGNORECASE,
)
_LEADING = re.compile(r"[\s*({\[]*([A-D])\b", re.IGNORECASE)
_FINAL_LINE = re.compile(r"\bfinal (?:choice|answer):(.*)", re.IGNORECASE)


def agrees(text: str, gold: str, task_type: str | None) -> bool:
    """Whether upstream takes a text for a right answer."""
    final = after_thinking(text) or ""
    gold = after_hashes(gold) or gold
    if task_type == "choice":
        return _choice(final) == _choice(gold)
    given, wanted = (boxed(answer) or answer.strip() for answer in (final, gold))
    if task_type == "math":
        forms = zip(_normal_forms(given), _normal_forms(wanted), strict=True)
        return any(a == b != "" for a, b in forms)
    is_same_date = (date := _date(given)) is not None and date == _date(wanted)
    is_same_text = given.lower() == wanted.lower() or exact_match(given, wanted)
    return is_same_date or is_same_text


def boxed(text: str) -> str | None:
    r"""The last \boxed{...} without inner braces, else from the first to the last brace of a line.

    Two boxes on one line merge.
    """
    if plain := _PLAIN_BOX.findall(text):
        return plain[-1].strip()
    for line in reversed(text.splitlines()):
        _, box, rest = line.partition(r"\boxed{")
        inside, brace, _ = rest.rpartition("}")
        if box and brace:
            return inside.strip()
    return None


def _normal_forms(answer: str) -> Iterator[str]:
    """Integer part of the first number; LaTeX without markup; no spaces; digits before a point."""
    number = _FIRST_NUMBER.search(answer)
    if number is None:
        yield ""
    elif number[3] is None:
        yield str(int(number[1]) // int(number[2]))
    else:
        yield number[3].lstrip("0") or "0"
    yield _LATEX.sub("", answer)
    yield "".join(answer.split())
    yield re.sub(r"\D", "", answer.partition(".")[0])


def _choice(text: str) -> str:
    """The letter in the box, in the last line `Final Choice:`, or in the text."""
    lines = _FINAL_LINE.findall(text)
    for candidate in (boxed(text), lines[-1] if lines else None, text):
        if candidate and (found := _KEYWORD.search(candidate) or _LEADING.match(candidate)):
            return found[1].upper()
    return DEFAULT_CHOICE


def _date(text: str) -> datetime.date | None:
    for form in DATES if len(text) <= MAX_DATE else ():
        try:
            return datetime.datetime.strptime(text.strip(" ."), form).date()
        except ValueError:
            pass
    return None
