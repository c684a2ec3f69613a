"""The answer in a text: the content of a box or the text after ####, else the whole text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from rmas_jax.agents.thinking_tags import after_thinking


class Found(NamedTuple):
    """An answer in a text."""

    answer: str
    is_marked: bool  # in a box or after ####; else it is the whole text
    is_hedged: bool = False  # its box is negated, or one of several


_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
HASHES = "####"  # before the answer in GSM8K's last line
JOIN_WIDTH = 40  # characters around a box that may hold a negation or a further answer
_BETWEEN = re.compile(
    r"[\s$.*]*(?:[,;/&]|,?\s*(?:or|and)\b)[\s$*]*|(?:[ $*]|\\[,;:! ()])*", re.IGNORECASE
)
_DENIED = re.compile(r"(?:\bnot|n['\u2019]t)(?:\s+option)?[\s$*:(]*\Z", re.IGNORECASE)
FONT = (  # commands of LaTeX for fonts, and others that leave their argument as it is
    r"\\(?:(?:text|math|[fhm])?(?:bf|box|it|rm|sf|tt|sc|cal|bb|frak|normal|up|md)"
    r"|text|boldsymbol|bm|pmb|operatorname|emph|underline|left|right)(?![A-Za-z])"
)
_MARKUP = re.compile(
    rf"{FONT}|\\(?:[,;:! ]|q?quad(?![A-Za-z])|\\)|(?<=\S)~(?=\S)"  # spaces of LaTeX
    r"|</?(?i:answer|b|strong|em|i)>"
)


def boxes(text: str) -> Iterator[tuple[int, int, int]]:
    r"""Start, start of content and end of content of each \boxed{...} whose braces are balanced."""
    opened: list[tuple[bool, int, int]] = []
    for match in _BRACE.finditer(text):
        if match[0] != "}":
            opened.append((len(match[0]) > 1, *match.span()))
        elif opened:
            is_box, start, inside = opened.pop()
            if is_box:
                yield start, inside, match.start()


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} with balanced braces in a text; None without one."""
    last = max(boxes(text), default=None)
    return last and text[last[1] : last[2]]


def after_hashes(text: str) -> str | None:
    """The part of the last line after `####`, as in GSM8K; None without one."""
    _, mark, end = text.rstrip().rpartition(HASHES)
    return end.strip() if mark and end.strip() and not {"\n", "#"} & {*end} else None


def find_answer(text: str) -> Found | None:
    """The answer in a text after its thinking: the marked part, else all of it; None if empty."""
    final = after_thinking(text)
    if final is None:
        return None
    last_line = after_hashes(final)
    inside = boxed(last_line or final)
    if inside is None:
        inside = last_line
    answer = " ".join((final if inside is None else inside).split())
    return Found(answer, inside is not None, _is_hedged(last_line or final)) if answer else None


def _is_hedged(text: str) -> bool:
    r"""Whether the last box is negated, or joined to a different one: \boxed{A} or \boxed{B}."""
    last = sorted(boxes(text))[-2:]
    if not last:
        return False
    start, inside, end = last[-1]
    if _DENIED.search(text, max(0, start - JOIN_WIDTH), start):
        return True
    _, other, other_end = last[0]
    if not other_end < start < other_end + JOIN_WIDTH:
        return False
    is_joined = _BETWEEN.fullmatch(text, other_end + 1, start) is not None
    return is_joined and text[other:other_end] != text[inside:end]


def without_markup(text: str) -> str:
    """A text with spaces for the fonts and spaces of LaTeX and for tags; braces stay."""
    return _MARKUP.sub(" ", text)
