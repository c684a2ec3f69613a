"""Loads decoders from Hugging Face directories and GGUF files, without torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from rmas_jax.host.errors import listed
from rmas_jax.models.checkpoint import find_checkpoint, read_config
from rmas_jax.models.config import DecoderConfig, UnsupportedModelError
from rmas_jax.models.decoder import Decoder
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.int8 import abstract_quantised, quantised, require_qwix
from rmas_jax.models.shards import Index, closed, read_shard
from rmas_jax.models.stored import StoredTensors, find_tensors
from rmas_jax.models.stored_names import (
    EMBEDDING,
    IGNORED,
    QUANTISED,
    UNEMBEDDING,
    stored_prefix,
    with_prefix,
)
from rmas_jax.models.weights import Weight, weight_table
from rmas_jax.partition import DEFAULT_POLICIES, Partition, Policies
from rmas_jax.sharding import auto_mesh

DTYPES = ("float32", "bfloat16", "float16")
WEIGHTS = ("int8",)
STORED_DTYPES = ("F64", "F32", "BF16", "F16")
# Families whose activations exceed the range of float16 -> why.
BEYOND_FLOAT16 = {
    "gemma3_text": "embeddings are scaled up and the sums of layers pass float16's 65,504"
}


def load_pretrained(
    path: str | os.PathLike[str],
    dtype: str = "float32",
    mesh: Mesh | None = None,
    *,
    weights: str | None = None,
    revision: str | None = None,
    policies: Policies = DEFAULT_POLICIES,
) -> tuple[Decoder, dict[str, Any]]:
    """Builds the decoder of a checkpoint and reads its weights.

    Args:
      path: a directory with `config.json` and safetensors (one file, or shards and their index); a
        GGUF file of llama.cpp, whose weights are dequantised; or a hub id of either, such as
        "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@REVISION" or "Qwen/Qwen3-0.6B-GGUF/NAME.gguf".
      dtype: of all parameters: float32, bfloat16 or float16. Stored bfloat16 stays exact in the
        first two.
      mesh: devices to split the parameters over, by the rules of `rmas_jax.sharding` for the axes
        `data`, `fsdp` and `model`; its axes are used as `Auto`. A process reads only its own
        devices' shards. None is one whole copy on the default device.
      weights: "int8" stores matrices in int8, with scales in `dtype` (`rmas_jax.models.int8`); each
        layer is quantised on its devices before the next one is read. None stores all in `dtype`.
      revision: branch, tag or commit, where `path` is a hub id.
      policies: how weights meet activations on a mesh.

    Returns:
      The decoder and its parameters, for `model.apply({"params": params}, ...)`.

    Raises:
      ValueError: `dtype` or `weights` is another.
      ImportError: the library for int8, or for GGUF files, is not installed.
      UnsupportedModelError: the architecture, its use in `dtype`, or a GGUF file's quantisation is
        not supported; raised before weights are read.
      CheckpointError: files are missing or damaged; weights are missing, unexpected, duplicate or
        misshapen (one error lists all); or a number is beyond the range of `dtype`.
    """
    _check_options(dtype, weights)
    checkpoint = find_checkpoint(path, revision=revision)
    config, source = checkpoint.config, checkpoint.source
    _check_range(config, dtype, source=str(source))
    with contextlib.ExitStack() as stack:
        opened = {file: checkpoint.open_file(file, stack) for file in checkpoint.files}
        homes, problems = find_tensors(opened)
        if config.num_layers > len(homes):  # before names for all layers are made
            raise CheckpointError(
                f"{source}: num_hidden_layers must be at most the number of tensors "
                f"({len(homes)}), got {config.num_layers}"
            )
        table = checkpoint.table(homes)
        problems += _problems(table, {name: opened[home] for name, home in homes.items()})
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: the weights must be those of {config.model_type}, got\n  "
            + "\n  ".join(listed(problems))
        )
    mesh = None if mesh is None else auto_mesh(mesh)
    params = {}
    with StoredTensors(homes, checkpoint.open_file) as stored:
        for weight in table:
            if _is_in_int8(weight, weights):
                layers = (
                    _load(layer, layer.abstract("float32", mesh), stored)
                    for layer in weight.layers()
                )
                params[weight.path] = quantised(weight, layers, dtype, mesh)
            else:
                params[weight.path] = _load(weight, weight.abstract(dtype, mesh), stored)
    decoder = Decoder(config, partition=Partition(mesh, policies))
    return decoder, traverse_util.unflatten_dict(params)


def abstract_agent(
    source: str | os.PathLike[str] | DecoderConfig,
    mesh: Mesh | None = None,
    *,
    dtype: str = "float32",
    weights: str | None = None,
    revision: str | None = None,
    policies: Policies = DEFAULT_POLICIES,
) -> tuple[Decoder, dict[str, Any]]:
    """The result of `load_pretrained` with a `jax.ShapeDtypeStruct` for each array of parameters.

    Reads no weight. Programs compiled for these shapes run on the loaded parameters later.

    Args:
      source: see `load_pretrained`, or the configuration itself. Of a GGUF file, only the header is
        read.
      mesh: devices to split the parameters over; a compile-only topology is enough. On a mesh each
        array has its `NamedSharding`.
      dtype: see `load_pretrained`.
      weights: "int8" or None.
      revision: branch, tag or commit, where `source` is a hub id.
      policies: see `load_pretrained`.

    Raises:
      ValueError, ImportError: as for `load_pretrained`.
      UnsupportedModelError: the architecture, or its use in `dtype`, is not supported.
      CheckpointError: `config.json`, or the header, is missing or damaged.
    """
    _check_options(dtype, weights)
    if isinstance(source, DecoderConfig):
        config, where = source, "config"
    else:
        config, where = read_config(source, revision=revision), str(source)
    _check_range(config, dtype, source=where)
    mesh = None if mesh is None else auto_mesh(mesh)
    params = {}
    for weight in weight_table(config):
        in_int8 = _is_in_int8(weight, weights)
        abstract = abstract_quantised if in_int8 else Weight.abstract
        params[weight.path] = abstract(weight, dtype, mesh)
    decoder = Decoder(config, partition=Partition(mesh, policies))
    return decoder, traverse_util.unflatten_dict(params)


def _check_options(dtype: str, weights: str | None) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if weights not in (None, *WEIGHTS):
        raise ValueError(f"weights must be None or one of {', '.join(WEIGHTS)}, got {weights!r}")
    if weights == "int8":
        require_qwix()


def _check_range(config: DecoderConfig, dtype: str, *, source: str) -> None:
    """Refuses float16 for families whose activations exceed its range."""
    if dtype == "float16" and config.model_type in BEYOND_FLOAT16:
        raise UnsupportedModelError(
            f"{source}: dtype of {config.model_type} must be float32 or bfloat16, got 'float16': "
            f"{BEYOND_FLOAT16[config.model_type]}"
        )


def _is_in_int8(weight: Weight, weights: str | None) -> bool:
    return weights == "int8" and weight.scale_axes != ()


def _problems(table: Sequence[Weight], tensors: Mapping[str, Any]) -> list[str]:
    """All differences between the stored tensors and the weight table, one line each.

    `tensors` maps names to open files.
    """
    problems = []
    expected = {name: weight.stored_shape for weight in table for name in weight.names}
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"missing: {name}")
            continue
        stored = tensors[name].get_slice(name)
        if tuple(stored.get_shape()) != shape:
            problems.append(f"misshapen: {name} must be {shape}, got {tuple(stored.get_shape())}")
        if stored.get_dtype() not in STORED_DTYPES:
            problems.append(f"dtype: {name} must be in {STORED_DTYPES}, got {stored.get_dtype()}")
    if packed := [name for name in tensors if QUANTISED.fullmatch(name)]:
        problems.insert(
            0,
            f"quantised: weights must be plain, got packed ones (GPTQ, AWQ, fp8, bitsandbytes) in "
            f"{packed[0]}; dequantise the model in its library and save it again",
        )
    prefix = stored_prefix(tensors)
    embedding, unembedding = (with_prefix(name, prefix) for name in (EMBEDDING, UNEMBEDDING))
    for name in tensors:
        if name in expected or IGNORED.fullmatch(name):
            continue
        if name != unembedding or embedding not in tensors:
            problems.append(f"unexpected: {name}")
        elif not _equal(*(tensors[tied].get_slice(tied) for tied in (unembedding, embedding))):
            problems.append(f"unexpected: {name}, which differs from the tied embeddings")
    return problems


def _equal(first: Any, second: Any) -> bool:
    """Whether two stored matrices are equal; reads them in parts."""
    shape = first.get_shape()
    return shape == second.get_shape() and all(
        np.array_equal(first[start:stop], second[start:stop])
        for start, stop in ((row, min(row + 4096, shape[0])) for row in range(0, shape[0], 4096))
    )


def _load(weight: Weight, target: jax.ShapeDtypeStruct, stored: StoredTensors) -> jax.Array:
    """One parameter on its devices, or on the default one.

    The host reads one shard at a time, and each once, even if several devices hold it.
    """
    shape, dtype, sharding = target.shape, target.dtype, target.sharding

    def read(index: Index) -> np.ndarray:
        return read_shard(weight, index, stored.get_slice, dtype)

    if sharding is None:
        return jax.block_until_ready(
            jax.device_put(read(closed([slice(None)] * len(shape), shape)))
        )
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, part in sharding.addressable_devices_indices_map(shape).items():
        key = tuple((p.start, p.stop) for p in closed(part, shape))
        holders.setdefault(key, []).append(device)
    shards = []
    for key, devices in holders.items():
        shard = read(tuple(slice(*ends) for ends in key))
        shards += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards, dtype=dtype)
