"""The rows of data files of any format, within bounds on size and number."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import unquote

from rmas_jax.data.files import CSV, Files, suffix_of
from rmas_jax.data.parquet import open_parquet
from rmas_jax.data.rows import DataError
from rmas_jax.host.errors import clipped
from rmas_jax.host.json_rows import FILE_LIMIT, read_json_rows
from rmas_jax.host.reading import open_regular

ROWS_LIMIT = 2_000_000  # of a split
NAMES_KEPT = 20  # of unused fields, for errors
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # a missing value of Spark and Hive


class Seen(NamedTuple):
    """Content of a split's files."""

    fields: Collection[str]  # the requested ones, and a few others
    rows: int
    objects: int  # rows that are objects


def look_through(files: Files, names: Collection[str]) -> Seen:
    """Scans the files of a split once, without keeping rows.

    Args:
      files: of one split.
      names: of the requested fields.

    Raises:
      DataError: a file cannot be read, or there are too many rows.
    """
    fields: set[str] = set()
    rows = objects = 0
    for name, path in files.named:
        for present in _fields_of_rows(name, path):
            rows += present.rows
            objects += present.objects
            if rows > ROWS_LIMIT:
                raise DataError(
                    f"{files.where}: must have at most {ROWS_LIMIT:,} rows, got more; leave "
                    "rows out, or name fewer files (data.files)"
                )
            new = [f for f in present.fields if f not in fields]
            fields.update(f for f in new if f in names or len(fields) < NAMES_KEPT)
    return Seen(fields, rows, objects)


def _fields_of_rows(name: str, path: Path) -> Iterator[Seen]:
    beside = partition_fields(name).keys()
    if suffix_of(path) == ".parquet":
        with open_parquet(path) as file:
            fields = [*file.fields, *beside] if file.count else []
            yield Seen(fields, file.count, file.count)
        return
    if path.suffix.lower() == CSV:
        for row in read_csv_rows(path):
            yield Seen([*row, *beside], 1, 1)
        return
    for _, row in read_json_rows(path, error=DataError):
        is_object = isinstance(row, dict)
        yield Seen([*row, *beside] if is_object else [], 1, int(is_object))


def read_rows(name: str, path: Path, fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a file, numbered from 1 by lines, or by rows where it has no lines.

    Args:
      name: of the file below the data folder; its folders may hold fields (`partition_fields`).
      path: of the file.
      fields: the needed fields; others may be missing.

    Yields:
      Number and row; for an unreadable row, a ValueError with the reason.

    Raises:
      DataError: the file cannot be read.
    """
    beside = partition_fields(name)
    for number, row in _own_rows(path, fields):
        yield number, beside | row if isinstance(row, dict) else row


def _own_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, Any]]:
    if suffix_of(path) == ".parquet":
        with open_parquet(path) as file:
            yield from enumerate(file.rows(fields), start=1)
        return
    if path.suffix.lower() == CSV:
        yield from enumerate(read_csv_rows(path), start=1)
        return
    for number, row in read_json_rows(path, error=DataError):
        if isinstance(row, json.JSONDecodeError):
            row = ValueError(f"not JSON: {row}")
        yield number, row


def read_csv_rows(path: Path) -> Iterator[dict[str, str | None]]:
    """Yields the rows of a CSV file with a header; a missing or empty value is None.

    Raises:
      DataError: the file cannot be read, or a row does not fit the header.
    """
    with open_regular(path, at_most=FILE_LIMIT, error=DataError) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows = csv.DictReader(text, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise csv.Error("must have as many values as the header, got another number")
                yield {name: value or None for name, value in row.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{clipped(str(path), 300)}: cannot be read: line {rows.line_num}: {error}"
            ) from None


def partition_fields(name: str) -> dict[str, str | int | None]:
    """Fields in the names of a file's folders, as Spark and Hive write them: `difficulty=3/`."""
    fields = {}
    for folder in PurePath(name).parts[:-1]:
        field, equals, text = folder.partition("=")
        if field and equals:
            text = unquote(text)
            is_number = re.fullmatch(r"0|-?[1-9][0-9]{,17}", text)
            value = int(text) if is_number else text
            fields[unquote(field)] = None if text == NO_VALUE else value
    return fields
