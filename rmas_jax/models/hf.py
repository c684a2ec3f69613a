"""Decoders in and out of Hugging Face directories: `config.json` and safetensors, without torch."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rmas_jax.models.config import DecoderConfig, config_from_hf, config_to_hf
from rmas_jax.models.decoder import Decoder
from rmas_jax.models.int8 import is_large, is_quantised, quantised, require_qwix
from rmas_jax.models.partition import closed, logical_axes, read_shard
from rmas_jax.models.weights import (
    EMBEDDING,
    IGNORED,
    CheckpointError,
    Weight,
    embedding_name,
    stored_prefix,
    unembedding_name,
    weight_table,
)
from rmas_jax.sharding import auto_mesh, named_sharding

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS = ("int8",)
STORED_DTYPES = ("F32", "BF16", "F16")
MAPPED_BYTES = 2**24  # of files that may be in memory at once, beside the tensor being read


def load_pretrained(
    path: str | os.PathLike[str],
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    *,
    weights: str | None = None,
    revision: str | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """Builds the decoder of a Hugging Face checkpoint and reads its weights.

    Args:
      path: a directory with `config.json` and safetensors (one file, or shards and their index),
        or a hub id such as "Qwen/Qwen3-0.6B" or "Qwen/Qwen3-0.6B@REVISION".
      dtype: of all parameters: float32, bfloat16 or float16. Stored bfloat16 stays exact in the
        first two.
      mesh: devices over which the parameters are split, by the rules of `rmas_jax.sharding` for
        the axes `data`, `fsdp` and `model`; its axes are used as `Auto`. A process reads only what
        its own devices hold. None is one whole copy on the default device.
      weights: "int8" keeps matrices in int8, with scales in `dtype` (`rmas_jax.models.int8`); each
        layer's is quantised where it lies before the next one is read. None keeps all in `dtype`.
      revision: branch, tag or commit, where `path` is a hub id.

    Returns:
      The decoder and its parameters, for `model.apply({"params": params}, ...)`.

    Raises:
      ValueError: `dtype` or `weights` is none of those.
      ImportError: int8 needs a library that is not installed.
      UnsupportedModelError: the architecture is not ported; no weight has been read.
      CheckpointError: files are missing or damaged, or weights are missing, unexpected, duplicate
        or misshapen; one error lists all such weights.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: allowed are {DTYPES}")
    if weights not in (None, *WEIGHTS):
        raise ValueError(f"weights={weights!r}: allowed are None and {WEIGHTS}")
    if weights == "int8":
        require_qwix()
    directory = local_directory(path, patterns=("*.json", "model*.safetensors"), revision=revision)
    config_path = directory / CONFIG_FILE
    config = config_from_hf(read_json(config_path), source=str(config_path))

    files = _weight_files(directory)
    with contextlib.ExitStack() as stack:
        opened = {file: _open(file, stack) for file in files}
        homes, problems = _homes(opened)
        table = weight_table(config, stored_prefix(homes))
        problems += _problems(config, table, {name: opened[home] for name, home in homes.items()})
    if problems:
        raise CheckpointError(
            f"{directory}: the weights do not fit {config.model_type}:\n  " + "\n  ".join(problems)
        )
    mesh = None if mesh is None else auto_mesh(mesh)
    params = {}
    with _Stored(homes) as stored:

        def load(weight, dtype):
            target = None
            if mesh is not None:
                shape = weight.param_shape(config.num_layers)
                target = named_sharding(shape, logical_axes(weight), mesh)
            return _load(weight, config.num_layers, stored, target, jnp.dtype(dtype))

        for weight in table:
            if weights == "int8" and is_large(weight):
                layers = (load(layer, "float32") for layer in weight.layers(config.num_layers))
                params[weight.path] = quantised(weight, layers, jnp.dtype(dtype))
            else:
                params[weight.path] = load(weight, dtype)
    return Decoder(config), traverse_util.unflatten_dict(params)


def save_pretrained(
    path: str | os.PathLike[str],
    model: Decoder,
    params: Mapping[str, Any],
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers and `load_pretrained` read.

    Args:
      path: directory, made if it does not exist.
      model: the decoder.
      params: its parameters; each is stored in the dtype it has.
      extra: fields of `config.json` that do not shape the decoder, such as `eos_token_id` and
        `max_position_embeddings`. Fields that do are taken from the model.

    Raises:
      UnsupportedModelError: the family's `config.json` cannot express the configuration.
      CheckpointError: `params` are in int8 or not those of `model`; nothing has been written.
    """
    c = model.config
    flat = traverse_util.flatten_dict(dict(params))
    if any(map(is_quantised, flat.values())):
        raise CheckpointError(
            "params are in int8, and what they were rounded from is gone: allowed are those of "
            "load_pretrained without weights='int8'"
        )
    table = {weight.path: weight for weight in weight_table(c)}
    problems = [f"missing: {'/'.join(key)}" for key in table.keys() - flat.keys()]
    problems += [f"unexpected: {'/'.join(key)}" for key in flat.keys() - table.keys()]
    for key in table.keys() & flat.keys():
        expected = table[key].param_shape(c.num_layers)
        if flat[key].shape != expected:
            problems.append(f"misshapen: {'/'.join(key)} is {flat[key].shape}, not {expected}")
    if problems:
        raise CheckpointError(
            "params are not those of the model:\n  " + "\n  ".join(sorted(problems))
        )

    tensors = {}
    for key, weight in table.items():
        param = np.asarray(flat[key])
        for layer, name in enumerate(weight.names(c.num_layers)):
            stored = weight.save(param[layer] if weight.is_stacked else param)
            tensors[name] = np.ascontiguousarray(stored)  # save_file ignores strides
    raw = {
        # The decoder knows no special tokens; without these, transformers assumes the family's.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **(extra or {}),
        **config_to_hf(c),
        "dtype": tensors[EMBEDDING].dtype.name,
    }

    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    # Each file appears under its name when it is complete.
    partial = directory / f".{WEIGHT_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(directory / WEIGHT_FILE)
    partial = directory / f".{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(raw, indent=2) + "\n")
    partial.replace(directory / CONFIG_FILE)


def local_directory(
    path: str | os.PathLike[str], *, patterns: tuple[str, ...], revision: str | None = None
) -> Path:
    """The directory `path`, or a local snapshot of the hub repository of that id.

    A hub id may carry its revision: "Qwen/Qwen3-0.6B@main". A directory of that name wins.

    Raises:
      CheckpointError: neither exists, or the hub cannot be reached.
    """
    directory = Path(path)
    if directory.is_dir():
        return directory
    if directory.exists():
        raise CheckpointError(f"{path}: is a file; allowed are a directory and a hub id")
    repository, _, own_revision = str(path).partition("@")
    if own_revision and revision:
        raise CheckpointError(f"{path}: carries a revision, and {revision!r} is given beside it")
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, revision=own_revision or revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # the hub has many errors, and they share no base
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: no such directory, and not available from the hub: {reason}"
        ) from error
    return Path(snapshot)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a `CheckpointError` that names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}; allowed is an object")
    return raw


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint; the single file goes first, as in transformers."""
    if (directory / WEIGHT_FILE).exists():
        return [directory / WEIGHT_FILE]
    index = directory / INDEX_FILE
    if not index.exists():
        raise CheckpointError(f"{directory}: holds neither {WEIGHT_FILE} nor {INDEX_FILE}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in weight_map.values()
    ):
        raise CheckpointError(
            f"{index}: weight_map must be an object of tensor names and names of files beside it"
        )
    return [directory / file for file in sorted(set(weight_map.values()))]


def _open(path: Path, stack: contextlib.ExitStack) -> Any:
    """An open safetensors file, which `stack` closes."""
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from None


def _homes(files: Mapping[Path, Any]) -> tuple[dict[str, Path], list[str]]:
    """Tensor name -> the file that holds it, and a line for each name in several files."""
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


def _problems(
    config: DecoderConfig, table: Sequence[Weight], tensors: Mapping[str, Any]
) -> list[str]:
    """Everything by which the stored tensors differ from the weight table, a line each.

    `tensors` gives the open file of each name.
    """
    problems = []
    expected = {
        name: weight.stored_shape for weight in table for name in weight.names(config.num_layers)
    }
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"missing: {name}")
            continue
        stored = tensors[name].get_slice(name)
        if tuple(stored.get_shape()) != shape:
            problems.append(f"misshapen: {name} is {tuple(stored.get_shape())}, not {shape}")
        if stored.get_dtype() not in STORED_DTYPES:
            problems.append(f"dtype: {name} is {stored.get_dtype()}; allowed are {STORED_DTYPES}")
    prefix = stored_prefix(tensors)
    embedding, unembedding = embedding_name(prefix), unembedding_name(prefix)
    for name in tensors:
        if name in expected or IGNORED.fullmatch(name):
            continue
        if name != unembedding or embedding not in tensors:
            problems.append(f"unexpected: {name}")
        elif not _equal(*(tensors[tied].get_slice(tied) for tied in (unembedding, embedding))):
            problems.append(f"unexpected: {name}, embeddings are tied and it is not equal to them")
    return problems


def _equal(first: Any, second: Any) -> bool:
    """Whether two stored matrices are equal; they are never whole in memory."""
    shape = first.get_shape()
    return shape == second.get_shape() and all(
        np.array_equal(first[start:stop], second[start:stop])
        for start, stop in ((row, min(row + 4096, shape[0])) for row in range(0, shape[0], 4096))
    )


class _Stored:
    """The tensors of a checkpoint; a context, because files are open between two of them.

    Files are mapped, and the pages that were read count as memory of the process until the file is
    closed: all are closed whenever much has been read.
    """

    def __init__(self, homes: Mapping[str, Path]):
        self._homes = homes
        self._stack = contextlib.ExitStack()
        self._files: dict[Path, Any] = {}
        self._read = 0  # bytes, at most

    def __enter__(self) -> _Stored:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        self._files.clear()
        self._read = 0

    def get_slice(self, name: str) -> Any:
        """What gives parts of a tensor; to be used up before the next call."""
        if self._read > MAPPED_BYTES:
            self.__exit__()
        path = self._homes[name]
        if path not in self._files:
            self._files[path] = _open(path, self._stack)
        stored = self._files[path].get_slice(name)
        self._read += math.prod(stored.get_shape()) * 4
        return stored


def _load(
    weight: Weight,
    num_layers: int,
    stored: _Stored,
    target: jax.sharding.Sharding | None,
    dtype: np.dtype,
) -> jax.Array:
    """One parameter on its devices, or on the default one.

    Shards pass through the host one after another, and each is read once, however many devices
    hold it.
    """
    shape, names = weight.param_shape(num_layers), weight.names(num_layers)

    def read(index):
        return read_shard(weight, index, names, stored.get_slice, dtype)

    if target is None:
        return jax.block_until_ready(
            jax.device_put(read(closed([slice(None)] * len(shape), shape)))
        )
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, part in target.addressable_devices_indices_map(shape).items():
        key = tuple((p.start, p.stop) for p in closed(part, shape))
        holders.setdefault(key, []).append(device)
    shards = []
    for key, devices in holders.items():
        shard = read(tuple(slice(*ends) for ends in key))
        shards += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, target, shards, dtype=dtype)
