"""Rows of tfds data sets, written as array_record files on first use.

Before use, files are compared with their checksums, and written again where these differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import tensorflow_datasets as tfds

from rmas_jax.data.rows import DataError
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import USER_ERRORS, clipped, describe, shown
from rmas_jax.host.reading import MEBIBYTE, open_regular, read_bytes

T = TypeVar("T")
Builder: TypeAlias = tfds.core.GeneratorBasedBuilder

CHECKSUMS = "checksums.json"  # file -> its SHA-256
FULL = (errno.ENOSPC, errno.EDQUOT)
# `test`, `test[:500]`, `test[-10%:]`
PART = re.compile(r"([\w-]+)(?:\[(-?\d{1,15}%?)?:(-?\d{1,15}%?)?\])?")
log = logging.getLogger(__name__)


def folder_of(builder: type[Builder], data_dir: Path) -> Path:
    """The folder of a data set's files."""
    return data_dir / builder.name / str(builder.VERSION)


def prepare(folder: Path, make: Callable[[], Builder]) -> None:
    """Writes the files of a data set into its folder, unless they are there, undamaged.

    Args:
      folder: of `folder_of`.
      make: reads the source of the data set; if it raises, no file remains.

    Raises:
      OSError: the files cannot be written; none remains.
    """
    if damage(folder) is None:
        return
    with _removing_empty_folders(folder.parent), _locked(folder.parent):
        fault = damage(folder)  # another process may have written them
        if fault is None:
            return
        _remove_leftovers(folder, fault)
        builder = make()
        tfds.disable_progress_bar()  # they would break up the bars of a run
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # tfds speaks of a download
                builder.download_and_prepare()
        except USER_ERRORS:
            raise
        except Exception as error:  # of the writer of array_record files
            raise _unwritable(folder, error) from error
        try:
            sums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
            write_atomic(folder / CHECKSUMS, json.dumps(sums, indent=1) + "\n")
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def damage(folder: Path) -> str | None:
    """The difference between a data set's files and their checksums; None: no difference."""
    if not folder.exists():
        return "missing"
    try:
        sums = json.loads(read_bytes(folder / CHECKSUMS, at_most=MEBIBYTE, error=DataError))
        for name, checksum in sums.items():
            if _checksum(folder / name) != checksum:
                return f"{name} has changed"
        more = {path.name for path in folder.iterdir()} - {*sums, CHECKSUMS}
    except (OSError, DataError) as error:
        return describe(error)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f"{CHECKSUMS} has changed"
    return f"{min(more)} is not in {CHECKSUMS}" if more else None


def _checksum(path: Path) -> str:
    with open_regular(path, at_most=None, error=DataError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder; waits for another process that writes into it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _removing_empty_folders(folder: Path) -> Iterator[None]:
    """Removes new empty folders: tfds makes one for downloads, and a failure leaves others."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        yield
    finally:
        made = [parent for parent in (folder, *folder.parents) if existing in parent.parents]
        downloads = folder.parent / "downloads"
        for empty in (downloads / "extracted", downloads, *made):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _remove_leftovers(folder: Path, fault: str) -> None:
    """Removes damaged files, and partial files of a killed process."""
    if folder.exists():
        log.warning("prepared data in %s: %s; it is prepared again", folder, clipped(fault, 300))
    for path in (folder, *folder.parent.glob(f"incomplete.*_{folder.name}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()


def _unwritable(folder: Path, error: Exception) -> Exception:
    """The error of a failed write; an OSError if the disk is full."""
    for code in FULL:
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), str(folder))
    return DataError(f"{folder}: cannot be written: {clipped(str(error), 300)}")


def sizes(builder: Builder) -> dict[str, int]:
    """Split -> number of its rows."""
    return {name: info.num_examples for name, info in builder.info.splits.items()}


class StoredRows(Sequence[T]):
    """Rows on the disk; one is read and made each time it is used."""

    def __init__(
        self, source: Sequence[dict[str, Any]], make: Callable[[dict[str, Any]], T], rows: range
    ):
        self.source, self.make, self.rows = source, make, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> StoredRows[T]: ...

    def __getitem__(self, index: int | slice) -> T | StoredRows[T]:
        if isinstance(index, slice):
            return StoredRows(self.source, self.make, self.rows[index])
        return self.make(_decoded(self.source[self.rows[index]]))


def read_split(builder: Builder, split: str, make: Callable[[dict[str, Any]], T]) -> Sequence[T]:
    """Rows of a split, or of a part of one such as `test[:500]`, `test[10%:20%]`, `test[-50:]`.

    Args:
      builder: of the data set, prepared.
      split: its name.
      make: of a row as it is stored.

    Raises:
      DataError: the split or part does not exist; the message lists the splits.
    """
    found = sizes(builder)
    part = PART.fullmatch(split)
    if part is None or part[1] not in found:
        raise DataError(
            f"a split must be one of {', '.join(map(repr, found))}, or a part of one such as "
            f"'test[:500]' or 'test[10%:20%]', got {shown(split)}"
        )
    count, units = found[part[1]], {bound[-1] == "%" for bound in part.groups()[1:] if bound}
    if len(units) > 1:  # tfds reads both as percent
        raise DataError(f"{shown(split)}: both ends must be rows, or both percent")
    start = _place(part[2], count, 0, split)
    stop = _place(part[3], count, count, split)
    if start >= stop:
        return []
    source = builder.as_data_source(split=f"{part[1]}[{start}:{stop}]")
    return StoredRows(source, make, range(len(source)))


def _place(text: str | None, count: int, default: int, split: str) -> int:
    """The row, of `count`, at which a part begins or ends; negative counts from the end."""
    if text is None:
        return default
    unit = "%" if text.endswith("%") else ""
    limit = 100 if unit else count
    number = int(text.removesuffix("%"))
    if abs(number) > limit:
        raise DataError(
            f"{shown(split)}: {text} must be between -{limit}{unit} and {limit}{unit}; the split "
            f"has {count} rows"
        )
    place = round(number * count / 100) if unit else number
    return place + count if number < 0 else place


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Bytes to text, and arrays to lists and numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode()
        if np.isscalar(value):
            return value
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value]

    return {name: plain(value) for name, value in row.items()}
