"""Checksums inside the JSON and YAML files of a run.

A row contains its own checksum under CRC32, so that copies of it can be verified. Rows without a
checksum, from earlier versions or users, are valid.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.reading import MEBIBYTE, read_json

CRC32 = "crc32"
FILE_LIMIT = 64 * MEBIBYTE
_COMMENT = re.compile(rf"\A# {CRC32}: ([0-9a-f]{{8}})\n")


def checksum(value: Any) -> str:
    """The CRC-32 of a value's JSON, independent of layout and order of keys."""
    plain = json.loads(json.dumps(value))  # keys are text, tuples are lists
    return _crc32(json.dumps(plain, sort_keys=True))


def seal(row: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum."""
    return {**row, CRC32: checksum(row)}


def unseal(row: dict[str, Any], *, source: str, error: type[InputError]) -> dict[str, Any]:
    """A JSON object without its checksum; verifies the checksum, if any.

    Raises:
      error: the checksum does not match; the message names `source`.
    """
    content = _without_checksum(row)
    if not is_sealed_well(row):
        raise error(
            f"{source}: is damaged: its checksum must be that of its content, "
            f"{checksum(content)}, got {shown(row[CRC32])}"
        )
    return content


def is_sealed_well(row: dict[str, Any]) -> bool:
    """Whether the checksum of a JSON object matches or is missing."""
    return CRC32 not in row or row[CRC32] == checksum(_without_checksum(row))


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with its checksum, atomically."""
    write_atomic(path, json.dumps(seal(content), indent=2))


def read_sealed(path: Path, *, error: type[InputError], way_out: str) -> dict[str, Any]:
    """The JSON object in a file, without its checksum; {} without a file.

    Raises:
      error: the file is damaged; the message names it, the damage and `way_out`.
    """
    if not path.exists():
        return {}
    try:
        content = read_json(path, at_most=FILE_LIMIT, error=error)
        return unseal(content, source=str(path), error=error)
    except error as reason:
        raise error(f"{reason}; {way_out}") from None


def seal_yaml(text: str) -> str:
    """A YAML text with its checksum as a comment in its first line."""
    return f"# {CRC32}: {_crc32(text)}\n{text}"


def unseal_yaml(text: str, *, source: str, error: type[InputError]) -> str:
    """A YAML text without its checksum; see `unseal`."""
    content = _COMMENT.sub("", text)
    if not text.strip():
        raise error(f"{source}: is damaged: it is empty")
    if (found := _COMMENT.match(text)) and found[1] != _crc32(content):
        raise error(
            f"{source}: is damaged: its checksum must be that of its content, {_crc32(content)}, "
            f"got {found[1]}"
        )
    return content


def _without_checksum(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != CRC32}


def _crc32(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
