"""State dicts in torch's zip format, read and written without torch.

A `.pt` file is a zip archive: `NAME/data.pkl` is a pickle of the dict, in which every tensor points
to a storage `NAME/data/KEY` of raw little-endian numbers. The pickle is not run
(`rmas_jax.interop.torch_pickle`), and the size of the file bounds the memory.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import clipped, listed, shown
from rmas_jax.host.reading import GIBIBYTE, MEBIBYTE, check_regular, open_regular, size
from rmas_jax.interop.torch_pickle import STORAGES, TensorView, read_pickle
from rmas_jax.models import CheckpointError
from rmas_jax.models.stored import read_safetensors

SAFETENSORS = ".safetensors"
MAX_FILE = 4 * GIBIBYTE  # links are some hundred MiB
MAX_PICKLE = 4 * MEBIBYTE  # some ten thousand tensors
MAX_DIRECTORY = 4 * MEBIBYTE  # of an archive's table of contents
BROADCAST = 64 * MEBIBYTE  # excess of tensors over their storages, by strides of zero


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """A state dict of tensors, from a `.safetensors` or a `torch.save` file.

    Raises:
      CheckpointError: the file is missing or damaged, does not hold tensors by name alone, would
        run code, or is too large for a link, by its size or its metadata.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS:
        check_regular(path, at_most=MAX_FILE, error=CheckpointError)
        return read_safetensors(path)
    with open_regular(path, at_most=MAX_FILE, error=CheckpointError) as file:
        try:
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, path)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged archive makes its reader raise almost anything
            raise CheckpointError(
                f"{path}: not a file of torch.save (format since torch 1.6): "
                f"{clipped(str(error), 200)}"
            ) from None


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict: safetensors, or a file for `torch.load`, by the suffix.

    Makes the folder.

    Raises:
      CheckpointError: the format lacks a dtype.
      OSError: the file cannot be written.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    names = {dtype: name for name, dtype in STORAGES.items()}
    wrong = {name: a.dtype.name for name, a in arrays.items() if a.dtype not in names}
    if wrong and path.suffix != SAFETENSORS:
        raise CheckpointError(
            f"{path}: dtypes must be {', '.join(d.name for d in names)}, got "
            f"{', '.join(listed([f'{d} in {n}' for n, d in wrong.items()]))}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SAFETENSORS:
        write_atomic(path, safetensors.numpy.save(arrays))  # save_file's errors name no file
        return
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", _pickle(arrays, names))
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            archive.writestr(f"{path.stem}/data/{key}", little.tobytes())
        archive.writestr(f"{path.stem}/version", "3\n")
    write_atomic(path, out.getvalue())


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Checks the size of an archive's table of contents.

    Its size is in records at the end of the file, before an optional comment.
    """
    end = file.seek(0, 2)
    file.seek(max(0, end - 2**17))
    tail = file.read()
    file.seek(0)
    for mark, at, width in ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):
        found = tail.find(mark)
        while found >= 0:
            count = int.from_bytes(tail[found + at : found + at + width], "little")
            if MAX_DIRECTORY < count < 256**width - 1:  # all ones: see the other record
                raise CheckpointError(
                    f"{path}: its table of contents must be at most {size(MAX_DIRECTORY)}, "
                    f"got {size(count)}"
                )
            found = tail.find(mark, found + 1)


def _read_archive(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    """The tensors of an archive."""
    members = {info.filename: info.file_size for info in archive.infolist()}
    assert archive.fp is not None  # it is open
    whole, held = sum(info.file_size for info in archive.infolist()), archive.fp.seek(0, 2)
    if whole > held:
        raise CheckpointError(
            f"{path}: must be uncompressed, as of torch.save, got {size(whole)} in {size(held)}"
        )
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path}: must be of torch.save, got a zip archive with {len(pickles)} data.pkl"
        )
    if members[pickles[0]] > MAX_PICKLE:
        raise CheckpointError(
            f"{path}: data.pkl must be at most {size(MAX_PICKLE)}, got {size(members[pickles[0]])}"
        )
    if (damaged := archive.testzip()) is not None:
        raise CheckpointError(f"{path}: {shown(damaged)} is damaged (checksum)")
    folder = pickles[0].removesuffix("data.pkl")
    if (order := folder + "byteorder") in members and archive.read(order) != b"little":
        raise CheckpointError(
            f"{path}: byte order must be little, got {shown(archive.read(order))}"
        )
    state = read_pickle(archive.read(pickles[0]), source=str(path))
    if not isinstance(state, dict) or not all(isinstance(x, TensorView) for x in state.values()):
        found = type(state).__name__
        if isinstance(state, dict):
            key = next(k for k, x in state.items() if type(x) is not TensorView)
            found += f" with {shown(key)}"
        raise CheckpointError(f"{path}: must hold tensors by name alone, got a {found}")

    storages = {}
    for name, view in state.items():
        member = f"{folder}data/{view.storage.key}"
        if member not in members:
            raise CheckpointError(
                f"{path}: is damaged: {shown(member)} is missing, with the tensor {shown(name)}"
            )
        if view.storage not in storages:
            raw = archive.read(member)
            whole_numbers = len(raw) - len(raw) % view.storage.dtype.itemsize
            storages[view.storage] = np.frombuffer(raw[:whole_numbers], view.storage.dtype)
    declared = sum(math.prod(x.shape) * x.storage.dtype.itemsize for x in state.values())
    if declared > 2 * sum(x.nbytes for x in storages.values()) + BROADCAST:  # 2: tied tensors
        raise CheckpointError(
            f"{path}: its tensors must fit its content of {size(whole)}, got {size(declared)}"
        )
    return {name: _array(view, storages[view.storage], path) for name, view in state.items()}


def _array(view: TensorView, storage: np.ndarray, path: Path) -> np.ndarray:
    """The values of a tensor."""
    reach = 1 + sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
    if view.offset + reach > len(storage):
        raise CheckpointError(f"{path}: is damaged: a tensor reaches beyond its storage")
    steps = tuple(step * storage.itemsize for step in view.strides)
    array = np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, steps)
    return -array if view.is_negated else array.copy()


def _pickle(arrays: Mapping[str, np.ndarray], names: Mapping[np.dtype, str]) -> bytes:
    """The pickle of a dict of tensors: opcodes, as the functions they name need torch to import."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw

    def number(value: int) -> bytes:
        return pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE

    def function(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    out = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        out += [
            text(name),
            function("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,  # its arguments
            pickle.MARK,  # the storage
            text("storage"),
            function("torch", names[array.dtype]),
            text(str(key)),
            text("cpu"),
            number(array.size),
            pickle.TUPLE,
            pickle.BINPERSID,
            number(0),  # offset
            numbers(array.shape),
            numbers(strides),
            pickle.NEWFALSE,  # requires no gradient
            function("collections", "OrderedDict"),  # no hooks
            pickle.EMPTY_TUPLE,
            pickle.REDUCE,
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])
