"""Search in a corpus of one's own: repeatable, and without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.tools.search import MAX_RESULTS, NEEDS_EXTRA, SearchResult, parse_result


def read_corpus(path: str | Path) -> list[SearchResult]:
    """Documents of a JSON-lines file: objects with `text`, and `title` and `url` if known.

    Raises:
      ValueError: there are none, or a line is something else; names file and line.
    """
    documents = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                documents.append(parse_result(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not documents:
        raise ValueError(f"{path}: no documents")
    return documents


class Bm25Search:
    """BM25 over documents in memory.

    Words count in lower case and unstemmed, English stop words not at all. Of documents that score
    the same, the one that stands first in the corpus comes first.
    """

    def __init__(self, documents: Sequence[SearchResult]):
        """Builds the index.

        Importing bm25s starts the JAX backend: a multi-host program calls
        `jax.distributed.initialize` before.

        Raises:
          ImportError: bm25s is not installed.
        """
        try:
            import bm25s
        except ImportError as error:
            raise ImportError(NEEDS_EXTRA.format("Bm25Search", "bm25s")) from error
        self._documents = tuple(documents)
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25()
        self._index.index(
            self._words(f"{document.title} {document.text}" for document in self._documents),
            show_progress=False,
        )

    def search(self, query: str) -> list[SearchResult]:
        """The best of the documents that share a word with the query."""
        (words,) = self._words([query])
        if not words:
            return []
        scores = self._index.get_scores(words)
        best = (-scores).argsort(kind="stable")[:MAX_RESULTS]
        return [self._documents[place] for place in best if scores[place] > 0]

    def _words(self, texts) -> list[list[str]]:
        return self._tokenize(list(texts), return_ids=False, show_progress=False)
