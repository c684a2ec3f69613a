"""A GGUF file's names of the decoder's weights, and what llama.cpp's converter did to each."""

from __future__ import annotations

import dataclasses

import numpy as np

from rmas_jax.models.architecture import DecoderConfig
from rmas_jax.models.gguf_blocks import require_gguf
from rmas_jax.models.gguf_header import Header
from rmas_jax.models.gguf_tensors import Change
from rmas_jax.models.weights import Weight, weight_table

# Rows whose heads have their rotated pairs side by side in a file of this architecture.
ROTATED = {
    "llama": ("attention/q_kernel", "attention/q_bias", "attention/k_kernel", "attention/k_bias")
}


def gguf_table(config: DecoderConfig, architecture: str) -> tuple[Weight, ...]:
    """The decoder's weights, with the names of their tensors in a GGUF file.

    Args:
      config: of the decoder.
      architecture: its name in llama.cpp.
    """
    gguf = require_gguf()
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], config.num_layers)

    def renamed(name: str) -> str:
        name = name.replace(".dt_bias", ".dt_proj.bias")  # as the converter does
        return names.get_name(name, try_suffixes=(".weight", ".bias"))

    return tuple(
        dataclasses.replace(weight, names=tuple(map(renamed, weight.names)))
        for weight in weight_table(config)
    )


def without_prediction(header: Header, config: DecoderConfig) -> Header:
    """The header without Qwen3.5's layers for multi-token prediction, behind the decoder's."""
    count = header.metadata.get(f"{header.architecture}.nextn_predict_layers", 0)
    extra = tuple(f"blk.{config.num_layers + i}." for i in range(count))
    kept = {name: t for name, t in header.tensors.items() if not name.startswith(extra)}
    return dataclasses.replace(header, tensors=kept)


def gguf_changes(table: tuple[Weight, ...], architecture: str) -> dict[str, Change]:
    """The changed tensors of a GGUF file, by name."""
    return {
        name: change
        for weight in table
        if (change := _change(weight, architecture)) is not None
        for name in weight.names
    }


def _change(weight: Weight, architecture: str) -> Change | None:
    row, c = weight.row, weight.config
    if row.path in ROTATED.get(architecture, ()):
        return Change(rows=_halves(weight.stored_shape[0], c.head_dim))
    if row.init == "unit" and c.unit_offset_norm:  # the file has the factor itself
        return Change(values=lambda factor: factor - 1)
    if row.path.startswith("linear/"):
        return _linear_change(weight)
    return None


def _linear_change(weight: Weight) -> Change | None:
    """The change of a weight of Qwen3.5's linear layers."""
    c = weight.config
    heads, values = _grouped(c, 1), _grouped(c, c.linear_value_dim)
    before = 2 * c.linear_key_heads * c.linear_key_dim  # queries and keys
    channels = np.concatenate([np.arange(before), before + values])
    return {
        "linear/qkv_kernel": Change(rows=channels),
        "linear/gate_kernel": Change(rows=values),
        "linear/rate_kernel": Change(rows=heads),
        "linear/decay_kernel": Change(rows=heads),
        "linear/decay_bias": Change(rows=heads),
        "linear/decay_log": Change(rows=heads, values=lambda rate: np.log(-rate)),
        "linear/conv_kernel": Change(rows=channels, shape=weight.stored_shape),
        "linear/out_kernel": Change(columns=values),
    }.get(weight.row.path)


def _halves(rows: int, head_dim: int) -> np.ndarray:
    """Place in the file of each row of queries or keys.

    here, as in transformers    a b c d | A B C D     pairs (a, c), (b, d)
    in the file                 a c b d | A C B D     pairs side by side
    """
    pairs = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def _grouped(config: DecoderConfig, size: int) -> np.ndarray:
    """Place in the file of each row of value heads with `size` rows.

    here, as in transformers    key head 0: a b | key head 1: c d
    in the file                 a c | b d
    """
    keys, count = config.linear_key_heads, config.linear_value_heads * size
    return np.arange(count).reshape(-1, keys, size).swapaxes(0, 1).reshape(-1)
