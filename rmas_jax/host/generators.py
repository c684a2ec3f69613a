"""Work in pieces, as generators that return a result."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")


def result_of(pieces: Generator[Any, None, T], into: list[Any] | None = None) -> T:
    """Does all pieces of a work; returns its result. What they yield goes into a list, if given."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        if into is not None:
            into.append(piece)
