"""Web search by Tavily."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from rmas_jax.tools.posting import PostError, post_json
from rmas_jax.tools.search import MAX_RESULTS, NEEDS_EXTRA, SearchError, SearchResult, parse_result

KEY_VARIABLE = "TAVILY_API_KEY"


@dataclasses.dataclass(frozen=True)
class TavilySearch:
    """A client of api.tavily.com; the key is in the environment variable TAVILY_API_KEY."""

    address: str = "https://api.tavily.com/search"
    depth: str = "advanced"  # or "basic"
    timeout_s: float = 20.0  # of one attempt
    attempts: int = 3
    pause_s: float = 1.0  # after the first attempt; doubles with each

    def search(self, query: str) -> list[SearchResult]:
        """The results; repeats the request after errors of network, server or rate limit.

        Raises:
          SearchError: all attempts failed, or the request was refused.
        """
        try:
            response = post_json(
                self.address,
                {"query": query, "search_depth": self.depth, "max_results": MAX_RESULTS},
                key=_key(),
                timeout_s=self.timeout_s,
                attempts=self.attempts,
                pause_s=self.pause_s,
            )
        except PostError as error:
            raise SearchError(str(error)) from None
        return _results(response)


def open_tavily() -> TavilySearch:
    """A client that can search: checked before a run.

    Raises:
      ImportError: httpx2 is not installed.
      SearchError: there is no key.
    """
    _httpx()
    _key()
    return TavilySearch()


def _results(response: Any) -> list[SearchResult]:
    try:
        pages = response.json()["results"]
        return [parse_result({**page, "text": page["content"]}) for page in pages]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SearchError(
            f"the response must be JSON with results, got {response.text:.100}"
        ) from error


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise SearchError(f"the environment variable {KEY_VARIABLE} must be set")
    return key


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA.format("Tavily search", "httpx2")) from error
    return httpx2
