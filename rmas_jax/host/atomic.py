"""Atomic writes of files and folders, and appending. Errors name the file."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rmas_jax.host.errors import InputError
from rmas_jax.host.reading import check_regular

PARTIAL = ".partial"  # suffix of a file during its write; a killed run may leave one


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, atomically.

    Atomic: a reader, or a killed process, sees either the old or the new content, even after a loss
    of power. Only one process may write at a time.

    Raises:
      InputError: the path is not a regular file's.
      OSError: the disk is full, read-only, ...; names the file, whose old content stays.
    """
    half = path.with_name(path.name + PARTIAL)
    _check_replaceable(path)
    with _errors_of(path):
        try:
            with _opened(half, os.O_TRUNC) as file:
                _write(file, _as_bytes(content))
                os.fsync(file.fileno())
            os.replace(half, path)
        except OSError:
            half.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(path: Path, *, error: type[InputError]) -> Iterator[Path]:
    """Yields a folder to fill, which appears at `path` once its context ends.

    Atomic: a reader, or a killed process, sees either nothing or the whole folder. Only one process
    may write at a time.

    Raises:
      error: there is something at the path already; its content stays.
      OSError: the disk is full, read-only, ...; nothing is left.
    """
    if os.path.lexists(path):
        raise error(f"{path}: must not exist yet, got a file or folder; name another, or delete it")
    half = path.with_name(path.name + PARTIAL)
    shutil.rmtree(half, ignore_errors=True)  # of a killed process
    half.mkdir(parents=True)
    try:
        yield half
        for file in filter(Path.is_file, half.rglob("*")):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        os.rename(half, path)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def append(path: Path, content: str | bytes) -> None:
    """Appends to a file, text as UTF-8. A killed process may leave a part of the content.

    Raises:
      InputError: the path is not a regular file's.
      OSError: as for `write_atomic`; the file has no part of the content.
    """
    with _errors_of(path), _opened(path, os.O_APPEND) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            _write(file, _as_bytes(content))
        except OSError:
            file.truncate(before)
            raise


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[io.FileIO]:
    _check_replaceable(path)  # opening a pipe for writing waits for a reader
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
    with open(descriptor, "wb", buffering=0) as file:
        yield file


def _check_replaceable(path: Path) -> None:
    if path.exists():
        check_regular(path, at_most=None, error=InputError)


def _as_bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _write(file: io.FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the error of a write has no name
        raise
