"""Decoders in and out of Hugging Face directories: `config.json` and safetensors, without torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
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
from rmas_jax.models.weights import (
    EMBEDDING,
    IGNORED,
    UNEMBEDDING,
    CheckpointError,
    Weight,
    weight_table,
)

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")
STORED_DTYPES = ("F32", "BF16", "F16")


def load_pretrained(
    path: str | os.PathLike[str],
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    *,
    revision: str | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """Builds the decoder of a Hugging Face checkpoint and reads its weights.

    Args:
      path: a directory with `config.json` and safetensors (one file, or shards and their index),
        or a hub id such as "Qwen/Qwen3-0.6B".
      dtype: of all parameters: float32, bfloat16 or float16. Stored bfloat16 stays exact in the
        first two.
      mesh: where the parameters go, a copy on each device; None is the default device.
      revision: branch, tag or commit, where `path` is a hub id.

    Returns:
      The decoder and its parameters, for `model.apply({"params": params}, ...)`.

    Raises:
      UnsupportedModelError: the architecture is not ported; no weight has been read.
      CheckpointError: files are missing or damaged, or weights are missing, unexpected, duplicate
        or misshapen; one error lists all such weights.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: allowed are {DTYPES}")
    directory = local_directory(path, patterns=("*.json", "model*.safetensors"), revision=revision)
    config_path = directory / CONFIG_FILE
    config = config_from_hf(_read_json(config_path), source=str(config_path))

    target = None
    if mesh is not None:
        target = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {}
    with contextlib.ExitStack() as stack:
        files = {file: _open(file, stack) for file in _weight_files(directory)}
        tensors, duplicates = _index(files)
        problems = duplicates + _problems(config, tensors)
        if problems:
            raise CheckpointError(
                f"{directory}: the weights do not fit {config.model_type}:\n  "
                + "\n  ".join(problems)
            )
        for weight in weight_table(config):
            array = _read(weight, tensors, config.num_layers, jnp.dtype(dtype))
            params[weight.path] = jax.device_put(array, target)
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
      CheckpointError: `params` are not those of `model`; nothing has been written.
    """
    c = model.config
    flat = traverse_util.flatten_dict(dict(params))
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

    Raises:
      CheckpointError: neither exists, or the hub cannot be reached.
    """
    directory = Path(path)
    if directory.is_dir():
        return directory
    if directory.exists():
        raise CheckpointError(f"{path}: is a file; allowed are a directory and a hub id")
    try:
        snapshot = huggingface_hub.snapshot_download(
            str(path), revision=revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # the hub has many errors, and they share no base
        raise CheckpointError(
            f"{path}: no such directory, and not available from the hub: {error}"
        ) from error
    return Path(snapshot)


def _read_json(path: Path) -> dict[str, Any]:
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
    weight_map = _read_json(index).get("weight_map")
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


def _index(files: Mapping[Path, Any]) -> tuple[dict[str, Any], list[str]]:
    """Tensor name -> the open file that holds it, and a line for each name in several files."""
    tensors, found_in = {}, {}
    for path, file in files.items():
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensors[name] = file
            found_in.setdefault(name, []).append(path.name)
    duplicates = [
        f"duplicate: {name} is in {', '.join(paths)}"
        for name, paths in found_in.items()
        if len(paths) > 1
    ]
    return tensors, duplicates


def _problems(config: DecoderConfig, tensors: Mapping[str, Any]) -> list[str]:
    """Everything by which the stored tensors differ from the weight table, a line each."""
    problems = []
    expected = {
        name: weight.stored_shape
        for weight in weight_table(config)
        for name in weight.names(config.num_layers)
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
    for name in tensors:
        if name in expected or IGNORED.fullmatch(name):
            continue
        if name != UNEMBEDDING or EMBEDDING not in tensors:
            problems.append(f"unexpected: {name}")
        elif not np.array_equal(
            tensors[name].get_tensor(name), tensors[EMBEDDING].get_tensor(EMBEDDING)
        ):
            problems.append(f"unexpected: {name}, embeddings are tied and it is not equal to them")
    return problems


def _read(
    weight: Weight, tensors: Mapping[str, Any], num_layers: int, dtype: np.dtype
) -> np.ndarray:
    """One parameter, all its layers, on the host."""
    if not weight.is_stacked:
        return weight.load(tensors[weight.name].get_tensor(weight.name)).astype(dtype)
    out = np.empty(weight.param_shape(num_layers), dtype)
    for layer, name in enumerate(weight.names(num_layers)):
        out[layer] = weight.load(tensors[name].get_tensor(name))
    return out
