"""What the API reference shows that griffe, which reads the code for mkdocstrings, leaves out.

griffe knows docstrings alone. Here, the comment behind a field or a constant says what it holds:

    reading: PromptInput  # what it reads before it writes
"""

from __future__ import annotations

import io
import tokenize
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Takes the comment on the last line of an attribute for its docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for every attribute that is read."""
        if attr.docstring is None and (comment := last_comment("\n".join(attr.lines))):
            attr.docstring = griffe.Docstring(comment, lineno=attr.endlineno, parent=attr)


class Shapes(griffe.Extension):
    """Keeps lists of lists, such as texts [N][R], from being links in Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that is read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("][", "]\\[")


def last_comment(code: str) -> str | None:
    """The comment on the last line of code, if there is one."""
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    last = code.count("\n") + 1
    found = [t.string for t in tokens if t.type == tokenize.COMMENT and t.start[0] == last]
    return found[-1].lstrip("# ") if found else None
