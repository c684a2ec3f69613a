"""Search results on file, so that an evaluation can be repeated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rmas_jax.tools.search import SearchProvider, SearchResult, parse_result


class NotRecordedError(LookupError):
    """A query that a replay cannot answer: the run is not the one that was recorded."""


class RecordedSearch:
    """Answers from a file what was asked before; asks a provider the rest, and records it.

    A line of the file is an object with `query` and `results`. Failures are not recorded.
    """

    def __init__(self, provider: SearchProvider | None, path: str | Path):
        """Reads the file, if there is one.

        Args:
          provider: None for a replay, where nothing is asked and nothing is written.
          path: of the JSON-lines file.

        Raises:
          FileNotFoundError: there is neither provider nor file.
          ValueError: a line that is no recorded search; names file and line.
        """
        self._provider, self._path = provider, Path(path)
        self._recorded: dict[str, list[SearchResult]] = {}
        if provider is None or self._path.exists():
            for number, line in enumerate(self._path.read_text("utf-8").splitlines(), start=1):
                try:
                    fields = json.loads(line)
                    results = [parse_result(result) for result in fields["results"]]
                    self._recorded[fields["query"]] = results
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{path}, line {number}: not a recorded search ({error}); remove it"
                    ) from error

    def search(self, query: str) -> list[SearchResult]:
        """What was recorded, or what the provider finds now.

        Raises:
          NotRecordedError: the query is new and there is no provider.
        """
        if query not in self._recorded:
            if self._provider is None:
                raise NotRecordedError(f"{self._path}: no record of the query {query!r}")
            results = self._provider.search(query)
            line = {"query": query, "results": [dataclasses.asdict(result) for result in results]}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._recorded[query] = results
        return list(self._recorded[query])
