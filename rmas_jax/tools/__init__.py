"""Tools of an agent: python in a sandbox, and search."""

from __future__ import annotations

import dataclasses

from rmas_jax.tools.bm25 import Bm25Search, open_bm25, read_corpus
from rmas_jax.tools.protocol import (
    CLOSING_TAGS,
    RESULT_TAGS,
    Call,
    limit_text,
    next_call,
    result_text,
)
from rmas_jax.tools.python import run_python
from rmas_jax.tools.recorded import NotRecordedError, RecordedSearch, open_recorded
from rmas_jax.tools.sandbox import PythonLimits, SandboxError, check_sandbox
from rmas_jax.tools.search import (
    SearchError,
    SearchProvider,
    SearchResult,
    render_error,
    render_results,
)
from rmas_jax.tools.tavily import TavilySearch, open_tavily

__all__ = [
    "CLOSING_TAGS",
    "RESULT_TAGS",
    "Bm25Search",
    "Call",
    "NotRecordedError",
    "PythonLimits",
    "RecordedSearch",
    "SandboxError",
    "SearchError",
    "SearchProvider",
    "SearchResult",
    "TavilySearch",
    "Toolbox",
    "check_sandbox",
    "limit_text",
    "next_call",
    "open_bm25",
    "open_recorded",
    "open_tavily",
    "read_corpus",
    "render_error",
    "render_results",
    "result_text",
    "run_python",
]


@dataclasses.dataclass(frozen=True)
class Toolbox:
    """The available tools and their limits."""

    python: PythonLimits | None = None  # None: not offered
    search: SearchProvider | None = None
    max_calls: int = 5  # of one text
    max_characters: int = 6000  # of one result
    unsafe_without_sandbox: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tools that are offered."""
        offered = {"python": self.python, "search": self.search}
        return tuple(name for name, tool in offered.items() if tool is not None)

    def run(self, call: Call) -> str:
        """The result of a call as text, without its tags and at its full length.

        An error in a tool is a result for the agent. Errors that invalidate the whole run are
        raised.

        Raises:
          SandboxError: code cannot be run safely here.
          NotRecordedError: a replayed search has no record of the query.
        """
        if call.tool == "python" and self.python is not None:
            return run_python(
                call.argument, self.python, unsafe_without_sandbox=self.unsafe_without_sandbox
            )
        if call.tool == "search" and self.search is not None:
            query = call.argument.strip()
            try:
                return render_results(query, self.search.search(query))
            except NotRecordedError:
                raise
            except Exception as error:  # providers may raise anything
                return render_error(error)
        return f"[there is no tool {call.tool} here]"
