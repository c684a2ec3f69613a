"""A GGUF file's names of the decoder's weights, and what llama.cpp's converter did to each."""

from __future__ import annotations

import dataclasses

import numpy as np

from rmas_jax.models.architecture import DecoderConfig
from rmas_jax.models.gguf_blocks import require_gguf
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
        return names.get_name(name, try_suffixes=(".weight", ".bias"))

    return tuple(
        dataclasses.replace(weight, names=tuple(map(renamed, weight.names)))
        for weight in weight_table(config)
    )


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
    return None


def _halves(rows: int, head_dim: int) -> np.ndarray:
    """Place in the file of each row of queries or keys.

    here, as in transformers    a b c d | A B C D     pairs (a, c), (b, d)
    in the file                 a c b d | A C B D     pairs side by side
    """
    pairs = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
