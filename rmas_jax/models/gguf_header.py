"""The header of a GGUF file (https://github.com/ggml-org/ggml, docs/gguf.md): metadata, tensors.

    "GGUF" | version | counts | metadata: key, type, value ... | tensors: name, shape ... | data

The reader of the package `gguf` makes an array for every token of the vocabulary: Gemma-3's header
takes it 13 s and 900 MB, this one 0.3 s and a tenth.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rmas_jax.host.errors import clipped, shown
from rmas_jax.host.reading import MEBIBYTE, open_regular, size
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.gguf_blocks import kind_of, row_bytes

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_HEADER = 64 * MEBIBYTE  # 262,144 tokens with scores have 7 MiB
MAX_DIMENSIONS = 4
ALIGNMENT = 32  # of the data, unless the metadata have another
# Type of a number in the metadata -> its numpy dtype.
NUMBERS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?")))
NUMBERS |= {10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9


class Stored(NamedTuple):
    """A tensor in the file."""

    kind: str  # F32, Q4_K, ...: of `gguf_blocks.KINDS`
    shape: tuple[int, ...]  # as in torch; the file has the reverse
    start: int  # first byte in the file
    row: int  # bytes of a row, along the last dimension

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.start + math.prod(self.shape[:-1]) * self.row


@dataclasses.dataclass(frozen=True)
class Header:
    """Metadata and tensors of a GGUF file, without their values."""

    path: Path
    metadata: dict[str, Any]  # numbers, texts, and lists of them
    tensors: dict[str, Stored]

    @property
    def architecture(self) -> str:
        """Name of the architecture in llama.cpp; "" where the file has none."""
        return str(self.metadata.get("general.architecture", ""))

    def section(self, prefix: str) -> dict[str, Any]:
        """The metadata whose keys start with `prefix`, without it."""
        cut = len(prefix)
        return {key[cut:]: v for key, v in self.metadata.items() if key.startswith(prefix)}


def read_header(path: Path) -> Header:
    """Reads the header of a GGUF file, and checks that its tensors lie within the file.

    Raises:
      CheckpointError: the file is missing, irregular, truncated, of another format, or one part of
        a divided one.
      UnsupportedModelError: a tensor has a quantisation that is not in `gguf_blocks.KINDS`.
      ImportError: the package `gguf` is not installed.
    """
    with open_regular(path, at_most=None, error=CheckpointError) as file:
        reader = _Reader(file, path)
        metadata, tensors = reader.metadata(), {}
        _check_undivided(metadata, path)
        for _ in range(reader.tensor_count):
            name, stored = reader.tensor()
            if name in tensors:
                raise reader.error(f"each tensor must have its own name, got {shown(name)} twice")
            tensors[name] = stored
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment % 8:
            raise CheckpointError(
                f"{path}: general.alignment must be a multiple of 8, got {shown(alignment)}"
            )
        data = -(-file.tell() // alignment) * alignment
        length = file.seek(0, 2)
    tensors = {name: t._replace(start=data + t.start) for name, t in tensors.items()}
    for name, stored in tensors.items():
        if stored.end > length:
            raise CheckpointError(
                f"{path}: not a whole GGUF file: {clipped(name, 100)} must end within it, at byte "
                f"{stored.end:,}, got a file of {length:,} bytes"
            )
    return Header(path, metadata, tensors)


def _check_undivided(metadata: dict[str, Any], path: Path) -> None:
    """Refuses one of several parts, which have the tensors between them."""
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        raise CheckpointError(
            f"{path}: split.count must be 1 (one file), got {shown(parts)}; join the parts with "
            "llama-gguf-split --merge"
        )


class _Reader:
    """Reads values of a header in turn."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path, self._left = file, path, MAX_HEADER
        magic = file.read(4)
        if magic != MAGIC:
            raise CheckpointError(f"{path}: a GGUF file must start with {MAGIC!r}, got {magic!r}")
        version = self.number("<u4")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            got = "big-endian numbers" if swapped else str(version)
            raise CheckpointError(f"{path}: version of GGUF must be 2 or 3, got {got}")
        self.tensor_count, self._field_count = self.number("<u8"), self.number("<u8")

    def error(self, problem: str) -> CheckpointError:
        """An error of the format."""
        return CheckpointError(f"{self._path}: not a whole GGUF file: {problem}")

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        if count > self._left:
            raise self.error(f"its header must be at most {size(MAX_HEADER)}, got more")
        self._left -= count
        out = self._file.read(count)
        if len(out) < count:
            raise self.error(f"its header must be complete, got {self._file.tell():,} bytes of it")
        return out

    def number(self, dtype: str) -> Any:
        """A number; of float32 the shortest decimal, such as 1e-6 instead of 9.99999997e-7."""
        found = np.frombuffer(self.bytes(np.dtype(dtype).itemsize), dtype)[0]
        return float(str(found)) if dtype == "<f4" else found.item()

    def numbers(self, dtype: str, count: int) -> list[Any]:
        """Several numbers."""
        return np.frombuffer(self.bytes(np.dtype(dtype).itemsize * count), dtype).tolist()

    def text(self) -> str:
        """A text, with its length before it."""
        raw = self.bytes(int.from_bytes(self.bytes(8), "little"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"texts must be UTF-8, got {shown(raw)}") from None

    def value(self, kind: int) -> Any:
        """A value of the metadata."""
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(self._dtype(kind))
        inner, count = self.number("<u4"), self.number("<u8")
        if inner == TEXT:
            return [self.text() for _ in range(count)]
        return self.numbers(self._dtype(inner), count)

    def _dtype(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise self.error(f"types of metadata must be 0 to 12, lists not nested, got {kind}")
        return NUMBERS[kind]

    def metadata(self) -> dict[str, Any]:
        """All metadata."""
        out: dict[str, Any] = {}
        for _ in range(self._field_count):
            key, kind = self.text(), self.number("<u4")
            if key in out:
                raise self.error(f"each key must be there once, got {shown(key)} twice")
            out[key] = self.value(kind)
        return out

    def tensor(self) -> tuple[str, Stored]:
        """Name and place of a tensor; its start counts from the start of the data."""
        name, count = self.text(), self.number("<u4")
        shape = tuple(reversed(self.numbers("<u8", min(count, MAX_DIMENSIONS))))
        if not 1 <= count <= MAX_DIMENSIONS or not 0 < math.prod(shape) < 2**60:
            raise self.error(
                f"{clipped(name, 100)} must have 1 to {MAX_DIMENSIONS} dimensions, none of size 0, "
                f"got {count}: {shown(shape)}"
            )
        where = f"{self._path}: {clipped(name, 100)}"
        kind, start = kind_of(self.number("<u4"), where=where), self.number("<u8")
        row = row_bytes(kind, shape[-1])
        if row is None:
            raise self.error(
                f"{clipped(name, 100)} must have rows of whole blocks of {kind}, got {shape[-1]} "
                "columns"
            )
        return name, Stored(kind, shape, start, row)
