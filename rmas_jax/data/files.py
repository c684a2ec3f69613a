"""Finds the data files of a folder, and the split of each."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path, PurePath
from typing import NamedTuple

from rmas_jax.data.rows import DataError
from rmas_jax.host.errors import clipped, shown
from rmas_jax.host.json_rows import CODECS
from rmas_jax.host.reading import check_regular

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# Suffixes of data files: the format of their rows, compressed or not.
SUFFIXES = (
    ".parquet",
    *(suffix + packed for suffix in JSON_SUFFIXES for packed in ("", *CODECS)),
)
READABLE = f"{', '.join(('.parquet', *JSON_SUFFIXES))} (the last three also {', '.join(CODECS)})"
CSV = ".csv"  # read where it is named; beside data it is seldom data
TABLES = (CSV, ".tsv", ".arrow", ".feather", ".orc", ".avro", ".xlsx")  # not read in folders
ENTRIES = 100_000  # files and folders below a data folder
# Beginnings of other names, as in `datasets`; `~$` marks lock files of office programs.
HIDDEN = (".", "__", "~$")
# Files of the hub's tools beside data.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# Split -> the words in names of files and folders by which the hub's tools recognise it; also
# before `set` and `data` (testset).
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class Files(NamedTuple):
    """The data files of one split."""

    where: str  # name in errors
    named: tuple[tuple[str, Path], ...]  # each with its name below the folder


def suffix_of(path: PurePath) -> str | None:
    """The suffix of a name, from SUFFIXES; None for other files."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def data_files(path: Path) -> dict[str, Files]:
    """Split -> its files, see `listed_files`; none may be a pipe, a broken link, ..."""
    return {split: regular(files) for split, files in listed_files(path).items()}


def regular(files: Files) -> Files:
    """The same files; refuses those that are not regular."""
    for _, path in files.named:
        check_regular(path, at_most=None, error=DataError)
    return files


def listed_files(path: Path) -> dict[str, Files]:
    """Split -> its files: the file itself, or those in a folder and the folders below it.

    In a folder, the split of a file follows from its name (`test-00000.parquet`), or else from the
    name of a folder around it (`dev/rows.jsonl`, `train.parquet/part-0.parquet`). If no name
    contains train, files without a split are train; so is a single file. Skips hidden files and
    folders (HIDDEN) and folders that begin with `_`, which hold metadata of Spark and Delta.

    Raises:
      DataError: there are no data files, or files of several formats, or files without a split
        beside those of train.
    """
    where = clipped(str(path), 300)
    splits = _by_split(path)
    unnamed = splits.pop(None, [])
    if unnamed and "train" in splits:  # they may hold held-out rows
        raise DataError(
            f"{where}: file names must have a split beside files of train, got "
            f"{clipped(unnamed[0][0], 300)}; move it, or name the file or folder of each split "
            "(data.files)"
        )
    named = {"train": unnamed} if unnamed else {}
    named |= {split: some for split, some in splits.items() if split is not None}
    return {
        split: Files(f"{where} ({split})" if len(named) > 1 else where, tuple(some))
        for split, some in named.items()
    }


def files_of_one_split(path: Path) -> Files:
    """The file itself, or all files of a folder, which belong to one split of any name.

    Raises:
      DataError: as in `data_files`, except for names without a split; or there are several splits.
    """
    splits = _by_split(path)
    if len(distinct := dict.fromkeys(split or "train" for split in splits)) > 1:
        raise DataError(
            f"{path}: its files must be of one split, got {', '.join(distinct)}; name the file or "
            "folder of each (data.files), or the folder alone (data.dataset)"
        )
    return regular(Files(clipped(str(path), 300), tuple(sorted(itertools.chain(*splits.values())))))


def matching_files(folder: Path, split: str, pattern: str) -> Files:
    """The files of a split: those of a folder whose names below it match a pattern (`test*.csv`).

    Raises:
      DataError: there is no such file, or it is of another kind.
    """
    where = clipped(str(folder), 300)
    if PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
        raise DataError(
            f"data.patterns.{split} must be names of files below {where}, got {shown(pattern, 200)}"
        )
    try:
        found = sorted(path for path in folder.glob(pattern) if not path.is_dir())
    except (ValueError, NotImplementedError) as error:  # an absolute one, or none
        raise DataError(
            f"data.patterns.{split} must be a pattern of file names such as test*.jsonl, got "
            f"{shown(pattern, 200)}: {clipped(str(error), 200)}"
        ) from None
    if not found:
        raise DataError(
            f"{where}: must hold {shown(pattern, 200)}, the files of the split {split} "
            "(data.patterns), got none"
        )
    for path in found:
        _check_readable(path)
    named = tuple((_printable(path.relative_to(folder)), path) for path in found)
    return Files(f"{where} ({split})", named)


def _check_readable(path: Path) -> None:
    """Refuses a file that is not regular, or of which rows are not read."""
    check_regular(path, at_most=None, error=DataError)
    if suffix_of(path) is None and path.suffix.lower() != CSV:
        raise DataError(
            f"{clipped(str(path), 300)}: must be one of {READABLE} or {CSV}, got another suffix"
        )


def _by_split(path: Path) -> dict[str | None, list[tuple[str, Path]]]:
    """Split, or None without one -> names and paths of its files, at least one."""
    where = clipped(str(path), 300)
    if not os.path.isdir(path):
        _check_readable(path)
        return {None: [(_printable(path.name), path)]}
    below = _names_below(path)
    found = {name: suffix for name in below if (suffix := suffix_of(name)) is not None}
    formats = [suffix for suffix in SUFFIXES if suffix in found.values()]
    if not formats:
        others = sorted({name.suffix for name in below if name.suffix})[:10]
        raise DataError(
            f"{where}: must hold files of {READABLE}, got {', '.join(others) or 'none'}"
        )
    if len(formats) > 1:  # may hold the same rows or different ones
        raise DataError(
            f"{where}: the files must be of one format, got {' and '.join(formats)} "
            "(data.files names a file or folder for each split)"
        )
    if unread := [name for name in below if name.suffix.lower() in TABLES and _split_named(name)]:
        raise DataError(
            f"{where}: the split {_split_named(unread[0])} must be one of {READABLE}, got "
            f"{unread[0]} (data.files names a file or folder for each split)"
        )
    splits: dict[str | None, list[tuple[str, Path]]] = {s: [] for s in (None, *SPLIT_WORDS)}
    for name in found:
        splits[_split_named(name)].append((_printable(name), path / name))
    return {split: some for split, some in splits.items() if some}


def _names_below(folder: Path) -> list[PurePath]:
    """Sorted names of possible data files below a folder.

    Follows links to folders, and enters each folder once, so that loops of links end.
    """
    names, entered, entries = [], set(), 0
    pending = [PurePath()]
    while pending:
        here = pending.pop()
        try:
            found = os.stat(folder / here)
            if (found.st_dev, found.st_ino) in entered:
                continue
            entered.add((found.st_dev, found.st_ino))
            with os.scandir(folder / here) as listed:
                for entry in listed:
                    entries += 1
                    if entries > ENTRIES:
                        raise DataError(
                            f"{folder}: must hold at most {ENTRIES:,} files and folders, got more; "
                            "name the folder of the data itself"
                        )
                    if entry.name in DESCRIPTIONS or entry.name.startswith(HIDDEN):
                        continue
                    if not _is_folder(entry):
                        names.append(here / entry.name)
                    elif not entry.name.startswith("_") and entry.name != "lost+found":
                        pending.append(here / entry.name)
        except OSError as error:
            raise DataError(f"{folder / here}: cannot be read ({error.strerror})") from None
    return sorted(names)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _split_named(name: PurePath) -> str | None:
    """The split of a file, by its name or else by that of the nearest folder."""
    for part in reversed(name.parts):
        for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part):  # TestData is two words
            word = word.lower().removesuffix("set").removesuffix("data")
            for split, words in SPLIT_WORDS.items():
                if word in words:
                    return split
    return None


def _printable(name: str | PurePath) -> str:
    """A name as printable text, for any bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
