"""The search tool: the provider's interface, and the text of results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Protocol

from rmas_jax.host.errors import InputError, shown

MAX_RESULTS = 4
MAX_CHARACTERS = 320  # of a result's text
SURROGATE = re.compile("[\ud800-\udfff]")  # which JSON can hold, and no tokenizer reads
NEEDS_EXTRA = "{} needs the package {}: pip install 'rmas_jax[search]'"


class SearchError(InputError):
    """A failed search."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """A found page or passage."""

    title: str
    url: str
    text: str


class SearchProvider(Protocol):
    """Anything that can be searched."""

    def search(self, query: str) -> list[SearchResult]:
        """The results, best first."""


def render_results(query: str, results: Sequence[SearchResult]) -> str:
    """Results as text: at most four, each with title, address and the start of its text."""
    if not results:
        return "[no search results]"
    lines = [f"Query: {_one_line(query)}", "Results:"]
    for number, result in enumerate(results[:MAX_RESULTS], start=1):
        lines.append(f"[{number}] {_one_line(result.title)}")
        if result.url:
            lines.append(f"URL: {_one_line(result.url)}")
        lines.append(_one_line(result.text)[:MAX_CHARACTERS])
    return "\n".join(lines)


def render_error(error: Exception) -> str:
    """A provider's exception as text."""
    return f"[search error] {type(error).__name__}: {error}"


def parse_result(fields: Any) -> SearchResult:
    """A result from JSON: an object with `text`, and optional `title` and `url`, which may be null.

    Raises:
      ValueError: any other value.
    """
    if isinstance(fields, dict):
        known = {name: value for name, value in fields.items() if value is not None}
        values: list[Any] = [known.get("title", ""), known.get("url", ""), known.get("text")]
        if all(isinstance(value, str) for value in values):
            if SURROGATE.search(" ".join(values)):
                raise ValueError("holds half of a surrogate pair, which is no text")
            return SearchResult(*values)
    raise ValueError(f"not an object with the strings text, title and url: {shown(fields, 100)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
