"""Rows as they stand in JSON, JSON lines and parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmas_jax.data.rows import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")  # of two forms of one data set, the first is read
NO_DATA = ("dataset_info.json", "dataset_infos.json")  # what the hub's tools write beside data


def data_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the data files of one form in a folder and the folders below it.

    Raises:
      DataError: there is nothing to read.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        return (path,)
    found = [file for file in sorted(path.rglob("*")) if file.name not in NO_DATA]
    for suffix in SUFFIXES:
        if files := tuple(file for file in found if file.suffix == suffix):
            return files
    what = "holds no such file" if path.is_dir() else "is none of these, or not there"
    raise DataError(f"{path}: rows are read from {', '.join(SUFFIXES)}; this {what}")


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields what stands in a file, row by row, with the line, or the row's number, from 1.

    A JSON file holds a list of rows, or an object with such a list under one of its fields. A line
    that is not JSON gives the error in the place of the row.

    Raises:
      DataError: the file as a whole cannot be read.
    """
    try:
        if path.suffix == ".jsonl":
            yield from _lines(path)
        elif path.suffix == ".json":
            yield from enumerate(_listed(json.loads(path.read_bytes())), start=1)
        else:
            import pyarrow.parquet  # slow to import, and only parquet needs it

            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                row = ValueError(f"not JSON: {error}")
            yield number, row


def _listed(content: Any) -> list[Any]:
    """The one list of rows in a JSON document."""
    fields = content.values() if isinstance(content, dict) else [content]
    lists = [value for value in fields if isinstance(value, list)]
    if len(lists) != 1:
        raise ValueError("allowed are a list of rows, or an object with one such list")
    return lists[0]
