"""Reading users' files: only regular ones, up to a size limit.

Every function takes the class of its error, whose message names the file and the requirement.
Devices, pipes, sockets and folders raise before reading, so that none blocks or fills the memory.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from rmas_jax.host.errors import InputError, clipped

KIBIBYTE, MEBIBYTE, GIBIBYTE = 2**10, 2**20, 2**30
Error = type[InputError]

# Start of git-lfs' pointer text, the content of a file before `git lfs pull`.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_MOST = KIBIBYTE  # bytes of a pointer text

# Test for a kind of file that is not regular -> its name.
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: str | Path, *, at_most: int | None, error: Error) -> int:
    """Refuses irregular files and files of more than `at_most` bytes; returns the size.

    For libraries that open files themselves; otherwise use `open_regular`.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as reason:  # ValueError: a NUL in the path
        raise error(_unreadable(path, reason)) from None
    _check(path, found, at_most, error)
    return found.st_size


def open_regular(path: str | Path, *, at_most: int | None, error: Error) -> io.BufferedReader:
    """Opens a regular file of at most `at_most` bytes (None: of any size) for reading."""
    check_regular(path, at_most=at_most, error=error)  # opening a device may have effects
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError as reason:
        raise error(_unreadable(path, reason)) from None
    file = os.fdopen(descriptor, "rb")
    try:
        found = os.fstat(descriptor)
        _check(path, found, at_most, error)  # the file may have been replaced
        if found.st_size <= LFS_MOST and file.peek(LFS_MOST).startswith(LFS_POINTER):
            raise error(
                f"{_shown(path)}: is a pointer of git-lfs, not the file itself; fetch it with git "
                "lfs pull"
            )
    except InputError:
        file.close()
        raise
    return file


def read_bytes(path: str | Path, *, at_most: int, error: Error) -> bytes:
    """The bytes of a regular file."""
    with open_regular(path, at_most=at_most, error=error) as file:
        try:
            # `read` allocates its limit before it reads.
            raw = file.read(min(os.fstat(file.fileno()).st_size, at_most) + 1)
            while len(raw) <= at_most and (more := file.read(MEBIBYTE)):
                raw += more  # files in /proc report a size of 0
        except OSError as reason:
            raise error(_unreadable(path, reason)) from None
    if len(raw) > at_most:
        raise error(f"{_shown(path)}: must be at most {size(at_most)}, got more")
    return raw


def read_text(path: str | Path, *, at_most: int, error: Error) -> str:
    """The text of a regular file: UTF-8, with or without a byte order mark."""
    return decode_text(read_bytes(path, at_most=at_most, error=error), source=path, error=error)


def decode_text(raw: bytes, *, source: str | Path, error: Error) -> str:
    """Bytes as text: UTF-8, with or without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        place = f"{reason.reason} at byte {reason.start}"
        found = "UTF-16; save it as UTF-8" if utf16 else place
        raise error(f"{source}: must be text in UTF-8, got {found}") from None


def parse_json(text: str | bytes, *, source: str | Path, error: Error) -> Any:
    """The value of a JSON text; any fault raises `error`."""
    value = json_value(text)
    if isinstance(value, ValueError):
        raise error(f"{source}: must be JSON: {clipped(str(value), 200)}")
    return value


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text, or a ValueError with the reason."""
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("too deep nesting")
    except (json.JSONDecodeError, UnicodeDecodeError) as reason:
        return reason
    except ValueError:  # from int
        return ValueError("an integer of more than 4,300 digits")


def read_json(path: str | Path, *, at_most: int, error: Error) -> dict[str, Any]:
    """The JSON object in a regular file."""
    raw = parse_json(read_text(path, at_most=at_most, error=error), source=path, error=error)
    if not isinstance(raw, dict):
        raise error(f"{path}: must be a JSON object, got a {type(raw).__name__}")
    return raw


def _check(path: str | Path, found: os.stat_result, at_most: int | None, error: Error) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
        raise error(f"{_shown(path)}: must be a regular file, got {kind}")
    if at_most is not None and found.st_size > at_most:
        raise error(f"{_shown(path)}: must be at most {size(at_most)}, got {size(found.st_size)}")


def _unreadable(path: str | Path, reason: OSError | ValueError) -> str:
    if isinstance(reason, FileNotFoundError):
        is_link = os.path.islink(path)
        return f"{_shown(path)}: no such file" + " (a broken link)" * is_link
    why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return f"{_shown(path)}: cannot be read ({why})"


def _shown(path: str | Path) -> str:
    return clipped(str(path), 300)


def size(count: int) -> str:
    """A number of bytes in words."""
    for unit, name in ((GIBIBYTE, "GiB"), (MEBIBYTE, "MiB"), (KIBIBYTE, "KiB")):
        if count >= unit:
            return f"{count / unit:,.4g} {name}"
    return f"{count} bytes"
