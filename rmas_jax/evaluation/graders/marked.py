"""The answer in a text: the content of a box or the text after ####, else the whole text."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.evaluation.graders.hedges import is_hedged


class Found(NamedTuple):
    """An answer in a text."""

    answer: str
    is_marked: bool  # in a box or after ####; else it is the whole text
    is_hedged: bool = False  # see `hedges`


_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
HASHES = "####"  # before the answer in GSM8K's last line
FONT = (  # commands of LaTeX for fonts, and others that leave their argument as it is
    r"\\(?:(?:text|math|[fhm])?(?:bf|box|it|rm|sf|tt|sc|cal|bb|frak|normal|up|md)"
    r"|text|boldsymbol|bm|pmb|operatorname|emph|underline|left|right|[lL]arge|LARGE|[hH]uge)"
    r"(?![A-Za-z])"
)
# Single and double quotes, dashes and the minus sign, and the full stop of Chinese.
_TYPOGRAPHIC = str.maketrans(
    "\u2018\u2019\u201c\u201d\u2010\u2011\u2013\u2014\u2212\u3002", "''\"\"-----."
)
_VARIANTS = re.compile(r"[^\x00-\xff]")
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
    text = last_line or final
    found = sorted(boxes(text))
    inside = text[found[-1][1] : found[-1][2]] if found else last_line
    answer = " ".join((final if inside is None else inside).split())
    return Found(answer, inside is not None, is_hedged(text, found)) if answer else None


def plain_typography(text: str) -> str:
    """A text with typewriter's quotes and dashes, composed accents, and no fonts or widths."""
    text = _VARIANTS.sub(lambda match: _variant(match[0]), text.translate(_TYPOGRAPHIC))
    return unicodedata.normalize("NFC", text)


@functools.lru_cache(4096)
def _variant(char: str) -> str:
    """The ordinary form of a wide or bold letter; an exponent is no digit."""
    is_variant = unicodedata.decomposition(char).startswith(("<wide>", "<narrow>", "<font>"))
    return unicodedata.normalize("NFKC", char) if is_variant else char


def without_markup(text: str) -> str:
    """A text with spaces for the fonts and spaces of LaTeX and for tags; braces stay."""
    return _MARKUP.sub(" ", text)
