"""Work in pieces, as generators that return a result."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")


def result_of(pieces: Generator[Any, None, T]) -> T:
    """Does all pieces of a work; returns its result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value
