"""The code in a model's text: without Markdown fences, prompts and stray indentation.

This module runs and imports no code, and parses at most one line of it.
"""

from __future__ import annotations

import ast
import re
import textwrap

_FENCE = re.compile(r"\s*(?:```+|~~~+)\s*[\w+.-]*\s*")
_INLINE = re.compile(r"(`+)(?:(?:python|py)[0-9]?\s+)?(.*[^`].*?)\1", re.DOTALL)
_PROMPT = re.compile(r"\s*(?:>>>|\.\.\.|In \[\d+\]:|\.\.\.:)(?: |$)")
_FIRST_PROMPT = re.compile(r"\s*(?:>>>|In \[\d+\]:)(?: |$)")
_QUOTES = re.compile(r'"""|\'\'\'')
PARSED_CHARACTERS = 500  # of a first line


def code_of(text: str) -> str:
    """The Python code in a text.

    A text without such marks loses only outer blank lines and indentation.
    """
    text = _unfenced(text)
    text = _without_prompts(textwrap.dedent(text).strip("\n"))
    return _dedented(text).strip()


def _unfenced(text: str) -> str:
    """The content of a text's fenced blocks, joined; the text itself if it has none.

    A fence in a triple-quoted string is part of the string; no other code contains fences.
    """
    if (inline := _INLINE.fullmatch(text.strip())) and "\n" not in text.strip():
        return inline[2]
    lines, fences, quote = text.split("\n"), [], None
    for i, line in enumerate(lines):
        if quote is None and _FENCE.fullmatch(line):
            fences.append(i)
        for found in _QUOTES.findall(line):
            quote = found if quote is None else None if found == quote else quote
    if not fences:
        return text
    if len(fences) == 1 and any(line.strip() for line in lines[: fences[0]]):
        rest = lines[fences[0] + 1 :]
        return "\n".join(rest if any(line.strip() for line in rest) else lines[: fences[0]])
    ends = [*fences[1::2], *[len(lines)] * (len(fences) % 2)]
    blocks = (lines[start + 1 : end] for start, end in zip(fences[::2], ends, strict=True))
    return "\n".join(textwrap.dedent("\n".join(block)) for block in blocks)


def _without_prompts(text: str) -> str:
    """The input lines of a session: lines after a prompt, without output."""
    lines = text.split("\n")
    if not _FIRST_PROMPT.match(lines[0]):
        return text
    prompts = [(line, _PROMPT.match(line)) for line in lines]
    return "\n".join(line[prompt.end() :] for line, prompt in prompts if prompt)


def _dedented(text: str) -> str:
    """A text without the indentation that all lines but the first have in common."""
    first, _, rest = text.partition("\n")
    if not rest.strip() or first[:1].isspace() or len(first) > PARSED_CHARACTERS:
        return text
    dedented = textwrap.dedent(rest)
    if dedented == rest:
        return text
    try:
        ast.parse(first)  # a statement by itself: nothing indented can follow it
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    return f"{first}\n{dedented}"
