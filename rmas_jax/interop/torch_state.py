"""State dicts in torch's zip format, read and written without torch.

A `.pt` file is a zip archive: `NAME/data.pkl` is a pickle of the dict, in which every tensor points
to a storage `NAME/data/KEY` of raw little-endian numbers. A pickle can name any function to be
called. This reader knows the three that a state dict needs and refuses every other by name, so
nothing that a file brings along is ever run.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rmas_jax.models import CheckpointError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
}
SAFETENSORS = ".safetensors"


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """A state dict of tensors, from a `.safetensors` file or one that `torch.save` wrote.

    Raises:
      CheckpointError: there is no such file, it is damaged, it holds anything but tensors by name,
        or it would have code run; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == SAFETENSORS:
        try:
            return safetensors.numpy.load_file(path)
        except Exception as error:  # the library raises one class of its own
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"{path}: {damaged} is damaged (checksum)")
            state = _unpickle(archive, path)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a file of torch.save (format since torch 1.6): {error}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in state.items()
    ):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    return dict(state)


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes what `read_state` reads: safetensors, or a file for `torch.load`, by the suffix.

    The folder is made.

    Raises:
      CheckpointError: a dtype that has no place in the format.
      OSError: nothing can be written there.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    names = {dtype: name for name, dtype in STORAGES.items()}
    wrong = {name: a.dtype.name for name, a in arrays.items() if a.dtype not in names}
    if wrong and path.suffix != SAFETENSORS:
        raise CheckpointError(f"{path}: {wrong}; allowed are {[d.name for d in names]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SAFETENSORS:
        path.write_bytes(safetensors.numpy.save(arrays))  # save_file's errors name no file
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", _pickle(arrays, names))
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            archive.writestr(f"{path.stem}/data/{key}", little.tobytes())
        archive.writestr(f"{path.stem}/version", "3\n")


def _unpickle(archive: zipfile.ZipFile, path: Path) -> Any:
    """What the archive's pickle describes, with arrays in place of tensors."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: a zip archive, but not of torch.save (no data.pkl)")
    folder = pickles[0].removesuffix("data.pkl")
    order = folder + "byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise CheckpointError(f"{path}: byte order {archive.read(order)!r}; allowed is little")

    def rebuild(storage, offset, size, stride, *_):
        count = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if not (offset >= 0 and all(n > 0 for n in size) and all(step >= 0 for step in stride)):
            raise CheckpointError(f"{path}: a tensor of shape {size} and strides {stride}")
        if offset + count > len(storage):
            raise CheckpointError(f"{path}: a tensor reaches beyond its storage")
        steps = tuple(step * storage.itemsize for step in stride)
        view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps)
        return view.copy()

    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) in known:
                return known[module, name]
            raise CheckpointError(
                f"{path}: its pickle asks for {module}.{name}, which is refused: a state dict "
                "needs tensors alone, and anything else could run code"
            )

        def persistent_load(self, pid):
            kind, dtype, key, *_ = pid
            if kind != "storage" or not isinstance(dtype, np.dtype):
                raise CheckpointError(f"{path}: unknown reference {pid!r}")
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)

    try:
        with archive.open(pickles[0]) as file:
            return Reader(file).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        raise CheckpointError(f"{path}: data.pkl is damaged: {error}") from None


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
