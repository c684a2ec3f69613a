"""Boxes that hold no answer of their own: denied ones, one of several, and parts of a formula."""

from __future__ import annotations

import re
from collections.abc import Sequence

JOIN_WIDTH = 40  # characters around a box that may hold a negation or a further answer
_GAP = r"[\s$*:(]*"  # Markdown and delimiters of mathematics
_BETWEEN = re.compile(
    r"[\s$.*]*(?:[,;/&]|,?\s*(?:n?or|and)\b)[\s$*]*(?:(?:maybe|perhaps|possibly)\b[\s$*]*)?"
    r"(?:\\?[a-z]\w*(?:_\{\w+\})?\s*=\s*)?"  # or x = ...
    r"|(?:[ $*]|\\[,;:! ()])*",
    re.IGNORECASE,
)
_DENIED = re.compile(  # before a box
    rf"""(?:\b(?:not|cannot|never|neither|except|rather\ than|instead\ of|(?:any|every|all)
        (?:thing)?\ but)|n['\u2019]t|\b(?:wrong|incorrect|false)\ (?:answer|option|choice|value)
        |\\neq?(?![A-Za-z])|\\not\s*=|≠)
    (?:\s+(?:an?|be|equal|equals|is|option|the|to|would|answer|choice)\b)*{_GAP}\Z""",
    re.IGNORECASE | re.VERBOSE,
)
_DENIED_AFTER = re.compile(
    rf"{_GAP}(?:(?:is|was|would be)\s+(?:wrong|incorrect|false"
    r"|not\s+(?:correct|right|(?:the|my)\s+(?:\w+\s+)?(?:answer|option|choice)))"
    r"|isn['\u2019]t\s+(?:correct|right|the))\b",
    re.IGNORECASE,
)
_OPERATORS = r"(?:times|cdot|div|pm|mp)(?![A-Za-z])"
_INTO = re.compile(  # before a box that is a part of a formula: -\boxed{5}, \sqrt{\boxed{5}}
    rf"""(?:\\{_OPERATORS}\s*
        | \\[dtc]?frac\s*(?:\{{[^{{}}]*\}}\s*)?\{{ | \\sqrt\s*(?:\[[^\]]*\])?\{{ | \^\s*\{{? | _\{{
        | [-\u2212+/\d] | [$=(\d]\s*[-\u2212+/]\s*)\Z""",
    re.VERBOSE,
)
_OUT_OF = re.compile(  # after such a box: \boxed{5}^2, \boxed{16}_8, \boxed{5} \text{ million}
    rf"""\ *\\(?:{_OPERATORS}|(?:pi|sqrt|[dtc]?frac)(?![A-Za-z]))
    | \^\s*(?!\s|\{{?\s*(?:\\circ|°)) | _\s*[{{\d] | [-\u2212]\d | \s*[+/]\s*\d | \d | [xyzni](?!\w)
    | (?:[\s$~]|\\[,;: ])*(?:\\(?:text|mathrm|mbox)\s*\{{\s*)?
        (?:hundred|thousand|million|billion|trillion|dozen)s?\b""",
    re.VERBOSE,
)
_FURTHER = re.compile(r"[\s$*]*or[\s$*]+(-?\d+)[\s$*.]*\Z")  # \boxed{5} or 6


def is_hedged(text: str, found: Sequence[tuple[int, int, int]]) -> bool:
    r"""Whether the last box is no answer of its own.

    It is denied, joined to a different one, or a part of a formula: "not \boxed{A}",
    \boxed{A} or \boxed{B}, -\boxed{5}, \boxed{5} million.

    Args:
      text: with boxes.
      found: start, start of content and end of content of each, in the order of their starts.
    """
    if not found:
        return False
    start, inside, end = found[-1]
    before = text[max(0, start - JOIN_WIDTH) : start]
    if _DENIED.search(before) or _INTO.search(before):
        return True
    if _DENIED_AFTER.match(text, end + 1) or _OUT_OF.match(text, end + 1):
        return True
    answer = text[inside:end]
    further = _FURTHER.match(text, end + 1)
    if further and re.fullmatch(r"-?\d+", answer.strip()) and further[1] != answer.strip():
        return True
    for other_start, other, other_end in reversed(found[:-1]):
        if not other_end < start < other_end + JOIN_WIDTH:
            return False
        if _BETWEEN.fullmatch(text, other_end + 1, start) is None:
            return False
        if text[other:other_end] != answer:
            return True
        start = other_start
    return False
