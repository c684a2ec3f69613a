"""Tool calls in a text: tags, with the result after the call.

... so I compute it: <python>print(6 * 7)</python> <result> 42 </result> It is 42.
"""

from __future__ import annotations

import dataclasses
import re

TOOLS = ("python", "search")
CLOSING_TAGS = tuple(f"</{tool}>" for tool in TOOLS)  # writing stops at these, in any case
RESULT_TAGS = (" <result> ", " </result>")  # around a tool's result
_CALL = re.compile(rf"<({'|'.join(TOOLS)})>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_END_OF_RESULT = re.compile(r"</(?=\s*result\s*>)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a tool in a text."""

    tool: str  # of TOOLS
    argument: str  # the text between the closing tag and the last opening one
    end: int  # of the closing tag in the text


def next_call(text: str, start: int = 0) -> Call | None:
    """The first complete call that begins at or after `start`; None if there is none."""
    match = _CALL.search(text, start)
    return match and Call(match[1].lower(), _innermost(match[2], match[1]), match.end())


def _innermost(argument: str, tool: str) -> str:
    """The argument after the last opening tag of the same tool: `<python> or <python>print(1)`.

    A tag between quotes is part of the argument.
    """
    for tag in reversed(list(re.finditer(f"<{tool}>", argument, re.IGNORECASE))):
        line = argument[argument.rfind("\n", 0, tag.start()) + 1 : tag.start()]
        if not line.count('"') % 2 and not line.count("'") % 2:
            return argument[tag.end() :]
    return argument


def result_text(result: str, max_characters: int) -> str:
    """The text after a call: the result in its tags.

    Breaks up an end tag in the result, so that a tool cannot end its own result and continue as the
    agent. Cuts a result of more than `max_characters` at its end, and notes its length.
    """
    result = _END_OF_RESULT.sub("< /", result)
    left_out = len(result) - max_characters
    if left_out > 0:
        result = f"{result[:max_characters]}\n[{left_out} more characters]"
    return result.join(RESULT_TAGS)


def limit_text(calls: int) -> str:
    """The text after a call beyond the maximum of `calls`, which is not run."""
    return (
        f" <result> [not run: {calls} tool calls have been made, and no more are allowed] </result>"
    )
