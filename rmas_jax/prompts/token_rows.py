"""Rows of tokens of any lengths, stored one after another and padded when a batch needs them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import IO, Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class TokenRows:
    """Token ids of n rows without padding.

    ids     a a a b c c c c        row i is ids[starts[i] : starts[i + 1]]
    starts  0     3 4       8      n + 1 numbers
    """

    ids: np.ndarray  # [total] int32
    starts: np.ndarray  # [n + 1] int64

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenRows:
        """From a sequence of ids for each row."""
        starts = _starts([len(row) for row in rows])
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, count=starts[-1])
        return cls(ids, starts)

    @classmethod
    def joined(cls, one: TokenRows, other: TokenRows) -> TokenRows:
        """The rows of one and, after them, those of another."""
        starts = np.concatenate([one.starts, one.starts[-1] + other.starts[1:]])
        return cls(np.concatenate([one.ids, other.ids]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.starts[row] : self.starts[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row [n]."""
        return np.diff(self.starts)

    def take(self, rows: Any) -> TokenRows:
        """The given rows, as a copy."""
        lengths = self.lengths[rows]
        starts = _starts(lengths)
        shift = np.repeat(self.starts[:-1][rows] - starts[:-1], lengths)
        return TokenRows(self.ids[np.arange(starts[-1]) + shift], starts)

    def padded(self, rows: Any, width: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
        """The given rows as ids [B, W] int32, 0 on padding, and valid [B, W] bool.

        Args:
          rows: numbers [B].
          width: W.
          left: whether padding precedes a row; else it follows.

        Raises:
          ValueError: a row has more than W tokens.
        """
        first, last = self.starts[:-1][rows, None], self.starts[1:][rows, None]
        if (longest := int((last - first).max(initial=0))) > width:
            raise ValueError(f"width must be at least {longest}, the longest row, got {width}")
        place = (last - width if left else first) + np.arange(width)
        valid = (first <= place) & (place < last)
        ids = np.zeros(valid.shape, np.int32)
        ids[valid] = self.ids[place[valid]]
        return ids, valid


class TokenFile:
    """Rows of tokens in a file: written in parts, then mapped into memory."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.lengths: list[np.ndarray] = []

    def add(self, rows: TokenRows) -> None:
        """Appends rows; raises OSError where the disk is full."""
        self.file.write(np.ascontiguousarray(rows.ids, np.int32).data)
        self.lengths.append(rows.lengths)

    def mapped(self) -> TokenRows:
        """All rows, in order; the file may then be closed."""
        starts = _starts(np.concatenate(self.lengths))
        if not starts[-1]:  # an empty file cannot be mapped
            return TokenRows(np.zeros(0, np.int32), starts)
        self.file.flush()
        return TokenRows(np.asarray(np.memmap(self.file, np.int32, mode="r")), starts)


def left_pad(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[np.ndarray, ...]:
    """Ragged token rows -> ids [B, W] int32 and valid [B, W] bool, padded on the left."""
    tokens = TokenRows.of(rows)
    width = int(tokens.lengths.max(initial=0)) if width is None else width
    return tokens.padded(np.arange(len(rows)), width, left=True)


def _starts(lengths: Any) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
