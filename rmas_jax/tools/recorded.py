"""Recorded search results, so that an evaluation is repeatable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rmas_jax.host.errors import shown
from rmas_jax.host.json_rows import append_line
from rmas_jax.host.recording import read_recording
from rmas_jax.tools.search import SearchError, SearchProvider, SearchResult, parse_result


class NotRecordedError(LookupError):
    """A query without a record in a replay: the run differs from the recorded one."""


@dataclasses.dataclass(frozen=True)
class RecordedSearch:
    """Answers recorded queries; sends others to a provider and records the results."""

    provider: SearchProvider | None  # None: a replay, which sends no queries and writes nothing
    path: Path  # JSON lines, each an object with `query` and `results`
    recorded: dict[str, list[SearchResult]]  # by query; failures are not recorded

    def search(self, query: str) -> list[SearchResult]:
        """The recorded results, or new ones of the provider.

        Raises:
          NotRecordedError: the query is new and there is no provider.
        """
        if query not in self.recorded:
            if self.provider is None:
                raise NotRecordedError(f"{self.path}: no record of the query {query!r}")
            results = self.provider.search(query)
            line = {"query": query, "results": [dataclasses.asdict(result) for result in results]}
            append_line(self.path, line)
            self.recorded[query] = results
        return list(self.recorded[query])


def open_recorded(provider: SearchProvider | None, path: str | Path) -> RecordedSearch:
    """Reads recorded searches, if there is a file of them.

    Args:
      provider: None for a replay.
      path: of the JSON-lines file. A recording drops an incomplete last line.

    Raises:
      FileNotFoundError: there is neither a provider nor a file.
      SearchError: not a regular file, or a line is no recorded search; names file and line.
    """
    path = Path(path)
    recorded = read_recording(
        path, _recorded, replays=provider is None, content="searches", error=SearchError
    )
    return RecordedSearch(provider, path, recorded)


def _recorded(row: object) -> tuple[str, list[SearchResult]]:
    if isinstance(row, dict):
        query, results = row.get("query"), row.get("results")
        if isinstance(query, str) and isinstance(results, list):
            return query, [parse_result(result) for result in results]
    raise ValueError(f"a row must be an object with query and results, got {shown(row)}")
