"""The answer in a text: what stands in a box or behind ####, else the whole text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from rmas_jax.agents.thinking_tags import after_thinking


class Found(NamedTuple):
    """An answer in a text."""

    answer: str
    is_marked: bool  # it stands in a box or behind ####; else it is the whole text


_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
HASHES = "####"  # before the answer in GSM8K's last line


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
    r"""What the last \boxed{...} of a text holds, whose braces are balanced; None without one."""
    last = max(boxes(text), default=None)
    return last and text[last[1] : last[2]]


def after_hashes(text: str) -> str | None:
    """The end of a last line behind `####`, as GSM8K has it; None without one."""
    _, mark, end = text.rstrip().rpartition(HASHES)
    return end.strip() if mark and end.strip() and not {"\n", "#"} & {*end} else None


def find_answer(text: str) -> Found | None:
    """What a text answers, behind its thinking: what it marks, or the whole; None if nothing."""
    final = after_thinking(text)
    if final is None:
        return None
    last_line = after_hashes(final)
    inside = boxed(last_line or final)
    if inside is None:
        inside = last_line
    answer = " ".join((final if inside is None else inside).split())
    return Found(answer, inside is not None) if answer else None


def answer_of(text: str) -> str | None:
    """What a text answers, as in `find_answer`."""
    found = find_answer(text)
    return found and found.answer
