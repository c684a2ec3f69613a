"""Rows of parquet files, in batches, with bounds checked before decoding.

A few kilobytes of parquet can repeat one value in ten thousand rows, or hold 3 x 10^8 rows without
values. So text stays dictionary-encoded until its decoded size is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmas_jax.data.rows import DataError
from rmas_jax.host.errors import clipped
from rmas_jax.host.json_rows import FILE_LIMIT
from rmas_jax.host.reading import GIBIBYTE, open_regular, size

if TYPE_CHECKING:
    import pyarrow

DECODED_LIMIT = GIBIBYTE  # of the columns read from a file
VALUE_LIMIT = 5_000_000  # rows of a file; values of one column in a group of rows
BATCH_ROWS = 1024
TEXT = "BYTE_ARRAY"  # parquet's type of text and bytes


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetRows:
    """The rows of an open parquet file."""

    path: Path
    file: pyarrow.parquet.ParquetFile
    fields: list[str]  # names of its columns
    count: int  # rows

    def rows(self, fields: Collection[str]) -> Iterator[dict[str, Any] | ValueError]:
        """Yields the rows with the given fields; a ValueError for an unreadable row.

        Raises:
          DataError: the file is damaged, too large, or has a field twice.
        """
        columns = [name for name in self.fields if name in fields]
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise DataError(f"{self.path}: has more than one column called {twice!r}")
        try:
            self._check_sizes(columns)
        except UnicodeDecodeError as error:  # a damaged name
            raise _unreadable(self.path, error) from None
        left = DECODED_LIMIT
        for batch in self._batches(columns):
            left -= sum(map(decoded_size, batch.columns))
            if left < 0:
                raise self._too_large()
            yield from _rows_of(batch)

    def _batches(self, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
        """Batches, one row group after another: lists keep their dictionaries only within one."""
        try:
            for group in range(self.file.num_row_groups):
                rows = _batch_rows(self.file.metadata, group)
                yield from self.file.iter_batches(rows, row_groups=[group], columns=columns)
        except Exception as error:  # of many kinds, where a file is damaged
            raise _unreadable(self.path, error) from None

    def _check_sizes(self, columns: Collection[str]) -> None:
        """Checks sizes in the file's metadata."""
        metadata = self.file.metadata
        total = 0
        if metadata.num_rows > VALUE_LIMIT:
            raise DataError(
                f"{self.path}: must have at most {VALUE_LIMIT:,} rows, has {metadata.num_rows:,}"
            )
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            for j in range(group.num_columns):
                chunk = group.column(j)
                if not f"{chunk.path_in_schema}.".startswith(tuple(f"{c}." for c in columns)):
                    continue
                if chunk.num_values > VALUE_LIMIT:
                    raise DataError(
                        f"{self.path}: {chunk.path_in_schema} must have at most {VALUE_LIMIT:,} "
                        f"values in a group of rows, has {chunk.num_values:,}"
                    )
                total += chunk.total_uncompressed_size
        if total > DECODED_LIMIT:
            raise self._too_large()

    def _too_large(self) -> DataError:
        return DataError(
            f"{self.path}: the columns that are read must decode to at most "
            f"{size(DECODED_LIMIT)}, are larger; split the file, or leave rows out"
        )


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[ParquetRows]:
    """Opens a parquet file.

    Raises:
      DataError: the file cannot be read.
    """
    import pyarrow.parquet  # slow to import, and only parquet needs it

    with open_regular(path, at_most=FILE_LIMIT, error=DataError) as file:
        try:
            metadata = pyarrow.parquet.read_metadata(file)
            leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
            opened = pyarrow.parquet.ParquetFile(
                file,
                metadata=metadata,
                read_dictionary=[
                    leaf.path
                    for i, leaf in enumerate(leaves)
                    if leaf.physical_type == TEXT and not _is_delta(metadata, i)
                ],
                pre_buffer=False,
            )
            fields = opened.schema_arrow.names
        except Exception as error:
            raise _unreadable(path, error) from None
        yield ParquetRows(path, opened, fields, metadata.num_rows)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be read, fetch it again if it is cut off: {clipped(str(error), 300)}"
    )


def _is_delta(metadata: pyarrow.parquet.FileMetaData, leaf: int) -> bool:
    """Whether a column's texts, one in each row, are delta-encoded (version 2 of parquet).

    pyarrow cannot keep these in a dictionary.
    """
    groups = range(metadata.num_row_groups)
    encodings = {e for g in groups for e in metadata.row_group(g).column(leaf).encodings}
    return metadata.schema.column(leaf).max_repetition_level == 0 and any(
        encoding.startswith("DELTA_") for encoding in encodings
    )


def _batch_rows(metadata: pyarrow.parquet.FileMetaData, group: int) -> int:
    """Rows to decode at a time: an empty delta may repeat the largest text."""
    columns = range(metadata.num_columns)
    sizes = [
        metadata.row_group(group).column(leaf).total_uncompressed_size
        for leaf in columns
        if metadata.schema.column(leaf).physical_type == TEXT and _is_delta(metadata, leaf)
    ]
    return max(1, min(BATCH_ROWS, DECODED_LIMIT // max(1, sum(sizes))))


def decoded_size(array: pyarrow.Array) -> int:
    """Bytes of a decoded array; a dictionary's value counts as often as it is used."""
    import pyarrow.compute
    import pyarrow.types

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        if not any(is_kind(kind.value_type) for is_kind in _text_kinds()):
            return 16 * len(array)
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return pyarrow.compute.sum(lengths).as_py() or 0
    if pyarrow.types.is_struct(kind):
        return sum(map(decoded_size, array.flatten()))
    if pyarrow.types.is_map(kind):
        return decoded_size(array.keys) + decoded_size(array.items)
    if hasattr(array, "flatten"):  # lists of all kinds
        return 8 * len(array) + decoded_size(array.flatten())
    return array.nbytes


def _text_kinds() -> tuple[Callable[[pyarrow.DataType], bool], ...]:
    from pyarrow import types

    return types.is_string, types.is_large_string, types.is_binary, types.is_large_binary


def _rows_of(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | ValueError]:
    batch = _shortened(batch)
    try:
        yield from batch.to_pylist()
    except Exception:  # a value outside Python's range: invalid UTF-8, the year 146,000
        for i in range(batch.num_rows):
            yield _row(batch, i)


def _shortened(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """The batch with floats of 16 and 32 bits as their shortest decimal numbers.

    0.1 in 32 bits is 0.10000000149011612 in Python, which no answer matches.
    """
    import pyarrow
    from pyarrow import types

    for i, column in enumerate(batch.columns):
        kind = np.float16 if types.is_float16(column.type) else np.float32
        if not (types.is_float16(column.type) or types.is_float32(column.type)):
            continue
        found = [None if value is None else float(str(kind(value))) for value in column.to_pylist()]
        batch = batch.set_column(i, batch.schema.names[i], pyarrow.array(found, pyarrow.float64()))
    return batch


def _row(batch: pyarrow.RecordBatch, i: int) -> dict[str, Any] | ValueError:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[i].as_py()
        except Exception as error:
            return ValueError(f"{name}: cannot be read: {clipped(str(error), 200)}")
    return row
