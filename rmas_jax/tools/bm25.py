"""Search in a local corpus: repeatable, and without a network."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmas_jax.host.inputs import local_input
from rmas_jax.host.json_rows import read_json_rows
from rmas_jax.tools.search import (
    MAX_RESULTS,
    NEEDS_EXTRA,
    SearchError,
    SearchResult,
    parse_result,
)
from rmas_jax.tools.words import words_of


def read_corpus(path: str | Path) -> list[SearchResult]:
    """Documents of a JSON-lines file: objects with `text`, and `title` and `url` if known.

    Raises:
      SearchError: no documents, or another kind of line; names file and line.
    """
    documents = []
    for number, row in read_json_rows(local_input(path), error=SearchError):
        try:
            if isinstance(row, ValueError):
                raise row
            documents.append(parse_result(row))
        except ValueError as error:
            raise SearchError(f"{path}, line {number}: {error}") from None
    if not documents:
        raise SearchError(f"{path}: must hold at least one document, got none")
    return documents


@dataclasses.dataclass(frozen=True)
class Bm25Search:
    """BM25 over documents in memory.

    Words are in lower case and unstemmed, without English stop words (`words`). Documents of equal
    score keep the order of the corpus.
    """

    documents: tuple[SearchResult, ...]
    index: Any  # of their words: bm25s.BM25

    def search(self, query: str) -> list[SearchResult]:
        """The best documents that share a word with the query."""
        (words,) = words_of([query], is_query=True)
        if not words:
            return []
        scores = self.index.get_scores(words)
        best = (-scores).argsort(kind="stable")[:MAX_RESULTS]
        return [self.documents[place] for place in best if scores[place] > 0]


def open_bm25(documents: Sequence[SearchResult]) -> Bm25Search:
    """Indexes documents.

    Importing bm25s starts the JAX backend: a multi-host program calls `jax.distributed.initialize`
    before.

    Raises:
      ImportError: bm25s is not installed.
      SearchError: no document has a word.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA.format("BM25 search", "bm25s")) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import sets it to DEBUG
    texts = (f"{document.title} {document.text}" for document in documents)
    words = words_of(texts, is_query=False)
    if not any(words):
        raise SearchError("at least one document must have a word that is no stop word")
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return Bm25Search(tuple(documents), index)
