"""Rows of JSON files, one at a time: JSON lines, or a list of rows; plain or compressed.

A file that is unusable as a whole (not regular, not UTF-8, too large, truncated) raises an error
that names it. An unreadable row becomes a ValueError in its place. One row is parsed at a time, so
the largest row bounds the memory.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rmas_jax.host.atomic import append
from rmas_jax.host.errors import clipped, shown
from rmas_jax.host.reading import (
    GIBIBYTE,
    MEBIBYTE,
    Error,
    decode_text,
    json_value,
    open_regular,
    size,
)

FILE_LIMIT = 4 * GIBIBYTE  # of a file, and of its unpacked content
LIST_LIMIT = GIBIBYTE // 2  # of a list of rows, whose whole text is in memory
ROW_LIMIT = 16 * MEBIBYTE  # of a row; a parsed one takes up to 25 times as much
LONG_ROW_LIMIT = 256 * MEBIBYTE  # of a line of few values, such as LiveCodeBench's packed tests
FEW = 1_000_000  # quotes, brackets and commas, which bound the number of values
BLOCK = MEBIBYTE // 16  # per read, from the end
LINE_LIMIT = 5_000_000  # lines of a file
ALLOWED = "must be a list of rows, an object with one such list, or a row per line"
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # by the last suffix

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET_OR_QUOTE = re.compile(r'["\[\]{}]')
_SCALAR = re.compile(r"[^\s,\[\]{}:\"]+")  # a number, true, false, null


def read_json_rows(path: Path, *, error: Error) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a file, numbered from 1 by lines or, in a list, by rows.

    A file named `.json` holds a list of rows, an object with such a list in one of its fields, or
    JSON lines; every other file holds JSON lines. Skips empty lines.

    Args:
      path: may end in a suffix of CODECS.
      error: class of the error.

    Yields:
      Number and row; for an unreadable row, a ValueError with the reason.

    Raises:
      error: the file cannot be read; names it.
    """
    try:
        if _format(path) == ".json" and _is_one_value(path, error):
            yield from enumerate(_listed(_whole_text(path, error)), start=1)
        else:
            yield from _rows_of_lines(path, error)
    except error:
        raise
    except (OSError, ValueError) as reason:  # of a codec or a device, of the JSON text
        raise error(f"{_name(path)}: cannot be read: {clipped(str(reason), 300)}") from None


def json_line(value: Any) -> bytes:
    """A value as a line of JSON, in UTF-8.

    Only its last byte is 0x0A: split lines at this byte alone, because `str.splitlines` also splits
    at U+2028 and others, which may occur in texts. Escapes lone surrogates, which UTF-8 cannot
    encode.
    """
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def append_line(path: Path, value: Any) -> None:
    """Adds a value to a file of JSON lines; raises as `append` does."""
    append(path, json_line(value))


def parse_line(line: bytes) -> Any:
    """The value in a line of JSON, or a ValueError with the reason."""
    text = _decoded(line)
    return text if isinstance(text, ValueError) else json_value(text)


def drop_half_line(path: Path, *, error: Error) -> None:
    """Removes a partial last line of a file, if the file exists.

    A process killed during a write leaves a partial line at the end.
    """
    if not os.path.lexists(path):
        return
    with open_regular(path, at_most=FILE_LIMIT, error=error) as file:
        kept = end = file.seek(0, os.SEEK_END)
        while kept > 0:
            start = max(0, kept - BLOCK)
            file.seek(start)
            found = file.read(kept - start).rfind(b"\n")
            if found >= 0:
                kept = start + found + 1
                break
            kept = start
    if kept < end:
        os.truncate(path, kept)


def _format(path: Path) -> str:
    """The suffix of a name without the suffix of a codec."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in CODECS else name.suffix


def _name(path: Path) -> str:
    return clipped(str(path), 300)


@contextlib.contextmanager
def _unpacked(path: Path, error: Error) -> Iterator[BinaryIO]:
    with open_regular(path, at_most=FILE_LIMIT, error=error) as file:
        codec = CODECS.get(path.suffix.lower())
        if codec is None:
            yield file
            return
        import pyarrow  # slow to import, and only packed files need it

        with io.BufferedReader(pyarrow.CompressedInputStream(file, codec)) as unpacked:
            yield unpacked


def _check_encoding(head: bytes, path: Path, error: Error) -> None:
    """Refuses UTF-16 and UTF-32, by the first 4 bytes of a file."""
    encoding = json.detect_encoding(head)
    if not encoding.startswith("utf-8"):
        raise error(
            f"{_name(path)}: must be text in UTF-8, got {encoding.upper()}; save it as UTF-8"
        )


def _numbered_lines(path: Path, error: Error) -> Iterator[tuple[int, str | ValueError]]:
    """Non-empty lines without a byte order mark; a ValueError for an unreadable line."""
    with _unpacked(path, error) as file:
        total = 0
        for number in itertools.count(1):
            line = rest = file.readline(LONG_ROW_LIMIT)
            if number == 1:
                _check_encoding(line[:4], path, error)
            while len(rest) == LONG_ROW_LIMIT and not rest.endswith(b"\n"):  # skip the rest
                total += len(rest)
                rest = file.readline(LONG_ROW_LIMIT)
            total += len(rest)
            if total > FILE_LIMIT:
                raise error(f"{_name(path)}: must unpack to at most {size(FILE_LIMIT)}, got more")
            if not line:
                return
            if number > LINE_LIMIT:
                raise error(f"{_name(path)}: must have at most {LINE_LIMIT:,} lines, got more")
            if rest is not line or (len(line) > ROW_LIMIT and not _has_few_values(line)):
                yield number, ValueError(f"larger than {size(ROW_LIMIT)}")
            elif not line.isspace():
                yield number, _decoded(line)


def _has_few_values(line: bytes) -> bool:
    return sum(map(line.count, (b'"', b",", b"[", b"{"))) <= FEW


def _decoded(line: bytes) -> str | ValueError:
    try:
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as reason:
        return ValueError(f"not UTF-8: byte {line[reason.start]:#04x} at {reason.start}")


def _rows_of_lines(path: Path, error: Error) -> Iterator[tuple[int, Any]]:
    is_first = True
    for number, text in _numbered_lines(path, error):
        row = text if isinstance(text, ValueError) else json_value(text)
        if is_first and isinstance(text, str) and text.lstrip().startswith("["):
            _check_no_list(row, f"{_name(path)}, line {number}", error)
        is_first = False
        yield number, row


def _check_no_list(row: Any, where: str, error: Error) -> None:
    """Refuses a file of JSON lines that begins with a list of rows, or with its first line."""
    hint = "name a file with a list of rows .json"
    if isinstance(row, json.JSONDecodeError):
        raise error(f"{where}: must be JSON, got the start of a list; {hint}")
    if isinstance(row, list) and row and all(isinstance(item, dict) for item in row):
        raise error(f"{where}: must be an object, got {shown(row)}; {hint}")


def _is_one_value(path: Path, error: Error) -> bool:
    """Whether a file holds one JSON value, not one per line."""
    lines = 0
    for _, text in _numbered_lines(path, error):
        if lines:
            return False
        if isinstance(text, ValueError) or isinstance(json_value(text), json.JSONDecodeError):
            return True
        lines = 1
    return True


def _whole_text(path: Path, error: Error) -> str:
    with _unpacked(path, error) as file:
        raw = file.read(LIST_LIMIT + 1)
    if len(raw) > LIST_LIMIT:
        raise error(
            f"{_name(path)}: a list of rows must be at most {size(LIST_LIMIT)}, got more; JSON "
            f"lines may have {size(FILE_LIMIT)}"
        )
    _check_encoding(raw[:4], path, error)
    return decode_text(raw, source=_name(path), error=error)


def _listed(text: str) -> Iterator[Any]:
    """The rows of the one list in a JSON text.

    Raises:
      ValueError: the number of lists is not one, or the text is truncated or not JSON.
    """
    start = _skip(text, 0)
    if text.startswith("[", start):
        end = yield from _elements(text, start)
    elif text.startswith("{", start):
        end = yield from _one_list(text, start)
    else:
        _end_of_value(text, start)  # raises if there is none
        raise ValueError(ALLOWED)
    if _skip(text, end) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _elements(text: str, start: int) -> Generator[Any, None, int]:
    """Yields the values of the list that begins at `start`; returns its end."""
    at = _skip(text, start + 1)
    if text.startswith("]", at):
        return at + 1
    while True:
        end = _end_of_value(text, at)
        yield json_value(text[at:end])
        at = _skip(text, end)
        if text.startswith("]", at):
            return at + 1
        at = _after(",", text, at)


def _one_list(text: str, start: int) -> Generator[Any, None, int]:
    """As `_elements`, of the list that is the value of one field of an object."""
    lists = 0
    at = _skip(text, start + 1)
    while True:
        name = _STRING.match(text, at)
        if name is None:
            raise json.JSONDecodeError("Expecting property name", text, at)
        at = _after(":", text, _skip(text, name.end()))
        if text.startswith("[", at):
            lists += 1
            if lists > 1:
                raise ValueError(ALLOWED)
            end = yield from _elements(text, at)
        else:
            end = _end_of_value(text, at)
            if isinstance(fault := json_value(text[at:end]), json.JSONDecodeError):
                raise fault
        at = _skip(text, end)
        if text.startswith("}", at):
            break
        at = _after(",", text, at)
    if not lists:
        raise ValueError(ALLOWED)
    return at + 1


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _after(delimiter: str, text: str, at: int) -> int:
    if not text.startswith(delimiter, at):
        raise json.JSONDecodeError(f"Expecting {delimiter!r} delimiter", text, at)
    return _skip(text, at + 1)


def _end_of_value(text: str, start: int) -> int:
    """The end of the value that begins at `start`, by its brackets and strings alone.

    Raises:
      ValueError: the value has no end, or is too large for a row.
    """
    depth, at = 0, start
    if not text.startswith(("{", "[", '"'), start) and (scalar := _SCALAR.match(text, start)):
        return scalar.end()
    while True:
        found = _BRACKET_OR_QUOTE.search(text, at)
        if depth == 0 and (found is None or found.start() != start or found[0] in "]}"):
            raise json.JSONDecodeError("Expecting value", text, start)
        if found is None:
            raise json.JSONDecodeError("Cut off", text, start)
        at = found.end()
        if found[0] == '"':
            string = _STRING.match(text, found.start())
            if string is None:
                raise json.JSONDecodeError("Unterminated string", text, found.start())
            at = string.end()
        else:
            depth += 1 if found[0] in "[{" else -1
        if at - start > ROW_LIMIT:
            raise ValueError(f"a row must be at most {size(ROW_LIMIT)}, got more")
        if depth <= 0:
            return at
