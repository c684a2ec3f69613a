"""Rows as they stand in JSON, JSON lines and parquet files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from rmas_jax.data.rows import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
NO_DATA = ("dataset_info.json", "dataset_infos.json")  # what the hub's tools write beside data
# Split -> the words, in names of files and of folders, that the hub's tools tell it by.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class Files(NamedTuple):
    """The data files of one split."""

    where: str  # what errors call them
    named: tuple[tuple[str, Path], ...]  # each with its name below the folder


def data_files(path: Path) -> dict[str, Files]:
    """Split -> its files: the file itself, or those in a folder and the folders below it.

    In a folder, a file's name says which split it is of (`test-00000.parquet`), or else the name of
    a folder around it (`dev/rows.jsonl`). What names no split is train, and so is a single file.

    Raises:
      DataError: there is nothing to read, or there are files of several forms.
    """
    if path.is_file() and path.suffix in SUFFIXES:
        return {"train": Files(str(path), ((path.name, path),))}
    found = [file for file in sorted(path.rglob("*")) if file.name not in NO_DATA]
    forms = [suffix for suffix in SUFFIXES if any(file.suffix == suffix for file in found)]
    if not forms:
        what = "holds no such file" if path.is_dir() else "is none of these, or not there"
        raise DataError(f"{path}: rows are read from {', '.join(SUFFIXES)}; this {what}")
    if len(forms) > 1:  # the same rows twice, or different ones: only the user knows
        raise DataError(
            f"{path}: holds {' and '.join(forms)} files; allowed is one form in a folder "
            "(data.files names a file or folder for each split)"
        )
    splits: dict[str, list[tuple[str, Path]]] = {split: [] for split in SPLIT_WORDS}
    for file in found:
        if file.suffix in forms:
            name = file.relative_to(path)
            splits[_split_named(name)].append((str(name), file))
    told = {split: named for split, named in splits.items() if named}
    return {
        split: Files(f"{path} ({split})" if len(told) > 1 else str(path), tuple(named))
        for split, named in told.items()
    }


def files_of_one_split(path: Path) -> Files:
    """The file itself, or all files of a folder, which are of one split, whichever it is.

    Raises:
      DataError: as in `data_files`; the files are of several splits.
    """
    splits = data_files(path)
    if len(splits) > 1:
        raise DataError(
            f"{path}: holds files of the splits {', '.join(splits)}; name the file or folder of "
            "each (data.files), or the folder alone (data.dataset)"
        )
    (files,) = splits.values()
    return files


def _split_named(name: PurePath) -> str:
    """The split that a file is of, by its name, or else by that of the nearest folder."""
    for part in reversed(name.parts):
        for word in re.findall("[a-z]+", part.lower()):
            for split, words in SPLIT_WORDS.items():
                if word in words:
                    return split
    return "train"


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
