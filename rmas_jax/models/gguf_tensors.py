"""Parts of the tensors of a GGUF file, dequantised: float32 arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rmas_jax.host.reading import open_regular
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.gguf_blocks import dequantised
from rmas_jax.models.gguf_header import Header, Stored

VALUES_AT_ONCE = 2**22  # dequantisation has several float32 arrays of this size


class Change(NamedTuple):
    """How a tensor of the decoder differs from the one in the file."""

    rows: np.ndarray | None = None  # [R] place in the file of each row, or value of a vector
    columns: np.ndarray | None = None  # [C] place in the file of each column
    values: Callable[[np.ndarray], np.ndarray] | None = None  # elementwise, of the file's values
    shape: tuple[int, ...] | None = None  # with dimensions of size 1 that the file leaves out


UNCHANGED = Change()


class TensorFile:
    """An open GGUF file with the interface of an open safetensors file; a context manager."""

    def __init__(self, header: Header, changes: Mapping[str, Change] | None = None):
        """Opens the file of `header`; `changes` are those of its tensors, by name."""
        self._tensors, self._changes = header.tensors, changes or {}
        self._file = open_regular(header.path, at_most=None, error=CheckpointError)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def keys(self) -> Iterable[str]:
        """Names of the tensors."""
        return self._tensors.keys()

    def get_slice(self, name: str) -> TensorSlice:
        """A reader of parts of a tensor."""
        change = self._changes.get(name, UNCHANGED)
        return TensorSlice(self._file, name, self._tensors[name], change)


class TensorSlice:
    """Reads parts of a vector or a matrix: `[...]` with a slice for each dimension.

    Only the bytes of these rows are read, and few are dequantised at a time.
    """

    def __init__(self, file: io.BufferedReader, name: str, stored: Stored, change: Change):
        self._file, self._name, self._stored, self._change = file, name, stored, change

    def get_shape(self) -> list[int]:
        """The shape of the tensor."""
        return list(self._change.shape or self._stored.shape)

    def get_dtype(self) -> str:
        """The type of the values, not of the file's blocks."""
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        first, *others = index if isinstance(index, tuple) else (index,)
        change, shape = self._change, self._stored.shape
        if len(shape) == 1:
            vector = self._matrix(np.arange(1), slice(None))[0]
            part = (vector if change.rows is None else vector[change.rows])[first]
        else:
            rows = np.arange(shape[0]) if change.rows is None else change.rows
            part = self._matrix(rows[first], others[-1] if others else slice(None))
        if change.values is not None:
            part = change.values(part)
        return part if change.shape is None else np.expand_dims(part, 1)

    def _matrix(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        """The values of some rows of the file and of a range of columns."""
        width, order = self._stored.shape[-1], self._change.columns
        out = np.empty((len(rows), len(range(width)[columns])), np.float32)
        at_once = max(1, VALUES_AT_ONCE // width)
        for start in range(0, len(rows), at_once):
            few = rows[start : start + at_once]
            values = dequantised(self._bytes(few), self._stored.kind)
            if order is not None:
                values = values[:, order]
            out[start : start + at_once] = values[:, columns]
        return out

    def _bytes(self, rows: np.ndarray) -> np.ndarray:
        """The bytes of some rows of the file, [R, bytes of a row]."""
        low, count, size = rows.min(), rows.max() + 1 - rows.min(), self._stored.row
        self._file.seek(self._stored.start + int(low) * size)
        found = np.fromfile(self._file, np.uint8, int(count) * size)
        if found.size < count * size:
            raise CheckpointError(
                f"{self._file.name}: must stay as it is while it is read, got less of {self._name}"
            )
        return found.reshape(count, size)[rows - low]
