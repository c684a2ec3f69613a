"""Bounded reading of safetensors files: headers first, then parts of tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rmas_jax.host.errors import clipped, listed, shown
from rmas_jax.host.reading import MEBIBYTE, open_regular, size
from rmas_jax.models.directories import read_json
from rmas_jax.models.errors import CheckpointError

WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILES = "pytorch_model*.bin"
MAX_HEADER = 16 * MEBIBYTE  # names, shapes and offsets of 100,000 tensors
MAX_INDEX = 32 * MEBIBYTE
FLOATS = ("float64", "float32", "float16", "bfloat16")
MAPPED_BYTES = 2**24  # of mapped files in memory, besides the tensor being read


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint; a single file takes precedence, as in transformers.

    An index may name files in folders below its own.
    """
    if (directory / WEIGHT_FILE).exists():
        return [directory / WEIGHT_FILE]
    index = directory / INDEX_FILE
    if not index.exists():
        held = sorted(file.name for file in directory.glob(TORCH_FILES))
        got = f"{held[0]}, torch's format: convert it with save_pretrained" if held else "neither"
        raise CheckpointError(f"{directory}: must have {WEIGHT_FILE} or {INDEX_FILE}, got {got}")
    weight_map = read_json(index, at_most=MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map must be an object from tensor names to file names, got "
            f"{shown(weight_map)}"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_below(file):
            raise CheckpointError(
                f"{index}: weight_map of {clipped(name, 100)} must name a file in its folder or "
                f"below, got {shown(file)}"
            )
    return [directory / file for file in sorted(set(weight_map.values()))]


def _is_below(file: str) -> bool:
    """Whether a valid relative path stays within its folder."""
    path = PurePosixPath(file)
    parts = path.parts
    is_short = len(file) < 4096 and all(len(part.encode(errors="replace")) < 256 for part in parts)
    return is_short and path.name != "" and not path.is_absolute() and ".." not in parts


def open_safetensors(path: Path, stack: contextlib.ExitStack) -> Any:
    """An open safetensors file, which `stack` closes; the header's size is bounded.

    Raises:
      CheckpointError: the file is missing, irregular, truncated or of another format.
    """
    with open_regular(path, at_most=None, error=CheckpointError) as file:
        header = int.from_bytes(file.read(8), "little")
    if header > MAX_HEADER:
        raise CheckpointError(
            f"{path}: not a whole safetensors file: its header must be at most {size(MAX_HEADER)}, "
            f"got {size(header)}"
        )
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        reason = clipped(str(error), 300)
        raise CheckpointError(f"{path}: not a whole safetensors file: {reason}") from None


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name.

    Raises:
      CheckpointError: see `open_safetensors`; or a tensor has a dtype that numpy lacks.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        return read_tensors(open_safetensors(path, stack), source=path)


def read_tensors(file: Any, *, source: str | Path) -> dict[str, np.ndarray]:
    """All tensors of an open safetensors file, by name.

    Raises:
      CheckpointError: a tensor has a dtype that numpy lacks.
    """
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (not a dict)
        try:
            tensors[name] = file.get_tensor(name)
        except Exception as error:  # of the library, or KeyError, TypeError at its dtypes
            kind = file.get_slice(name).get_dtype()
            raise CheckpointError(
                f"{source}: {clipped(name, 100)} must have a dtype of numpy, got {kind}: "
                f"{clipped(str(error), 200)}"
            ) from None
    return tensors


def as_float32(tensors: Mapping[str, np.ndarray], *, source: str | Path) -> dict[str, np.ndarray]:
    """Parameters in float32, checked to be finite floating-point numbers.

    Raises:
      CheckpointError: names the tensors that are not.
    """
    problems, out = [], {}
    for name, tensor in tensors.items():
        label = clipped(name, 100)
        if tensor.dtype.name not in FLOATS:
            problems.append(f"{label} must be {' or '.join(FLOATS)}, got {tensor.dtype.name}")
            continue
        with np.errstate(over="ignore"):
            out[name] = np.asarray(tensor, np.float32)
        if not tensor.size:
            problems.append(f"{label} must have numbers, got the shape {tensor.shape}")
        elif lost := tensor.size - int(np.isfinite(out[name]).sum()):
            problems.append(
                f"{label} must be finite in float32, got {lost:,} of {tensor.size:,} numbers that "
                "are not"
            )
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(listed(problems))}")
    return out


def find_tensors(files: Mapping[Path, Any]) -> tuple[dict[str, Path], list[str]]:
    """Tensor name -> its file, and a line for each name that is in several files."""
    found_in: dict[str, list[Path]] = {}
    for path, file in files.items():
        for name in file.keys():  # noqa: SIM118 (not a dict)
            found_in.setdefault(name, []).append(path)
    duplicates = [
        f"duplicate: {name} is in {', '.join(path.name for path in paths)}"
        for name, paths in found_in.items()
        if len(paths) > 1
    ]
    return {name: paths[-1] for name, paths in found_in.items()}, duplicates


class StoredTensors:
    """The tensors of a checkpoint; a context manager, because files stay open between reads.

    Files are memory-mapped, and their pages are memory of the process until the file is closed: all
    are closed after every `MAPPED_BYTES` read.
    """

    def __init__(
        self,
        homes: Mapping[str, Path],
        open_file: Callable[[Path, contextlib.ExitStack], Any] = open_safetensors,
    ):
        """`homes` is the file of each tensor; `open_file` opens one, which the stack closes."""
        self._homes, self._open_file = homes, open_file
        self._stack = contextlib.ExitStack()
        self._files: dict[Path, Any] = {}
        self._read = 0  # bytes, at most

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        self._files.clear()
        self._read = 0

    def get_slice(self, name: str) -> Any:
        """A reader of parts of a tensor; valid until the next call."""
        if self._read > MAPPED_BYTES:
            self.__exit__()
        path = self._homes[name]
        if path not in self._files:
            self._files[path] = self._open_file(path, self._stack)
        stored = self._files[path].get_slice(name)
        self._read += math.prod(stored.get_shape()) * 8
        return stored
