"""Where each parameter of a decoder is kept in a Hugging Face checkpoint, as one table.

A row says the name there, the path here and the transform between the two; loading, saving and all
checks are derived from the rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from rmas_jax.models.config import DecoderConfig


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or does not hold the weights of its model."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter, in a checkpoint and in the parameter tree.

    A name with `{layer}` stands for one tensor per layer; here they are stacked on axis 0.
    """

    name: str  # in the checkpoint
    stored_shape: tuple[int, ...]  # in the checkpoint
    path: tuple[str, ...]  # in the parameter tree
    shape: tuple[int, ...]  # in the parameter tree, without the axis of layers
    transform: str  # key of TRANSFORMS

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.name

    def names(self, num_layers: int) -> list[str]:
        """Names of all tensors of this row, in the order of the layers."""
        if not self.is_stacked:
            return [self.name]
        return [self.name.format(layer=layer) for layer in range(num_layers)]

    def param_shape(self, num_layers: int) -> tuple[int, ...]:
        """Shape in the parameter tree, with the axis of layers where there is one."""
        return (num_layers, *self.shape) if self.is_stacked else self.shape

    def load(self, stored: np.ndarray) -> np.ndarray:
        """One stored tensor -> the parameter (of one layer)."""
        return TRANSFORMS[self.transform][0](stored, self.shape)

    def save(self, param: np.ndarray) -> np.ndarray:
        """The parameter (of one layer) -> the tensor to store."""
        return TRANSFORMS[self.transform][1](param, self.stored_shape)


Transform = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # (array, new shape) -> array

# Name -> (load, save). torch keeps linear weights as [out, in], here they are [in, out]; an axis
# that holds all heads is split, which the shapes of the row say.
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "reshape": (
        lambda stored, shape: stored.reshape(shape),
        lambda param, stored_shape: param.reshape(stored_shape),
    ),
    "transpose": (
        lambda stored, shape: stored.T.reshape(shape),
        lambda param, stored_shape: param.reshape(stored_shape[::-1]).T,
    ),
}

# Buffers that older checkpoints carry and that are computed here.
IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
EMBEDDING = "model.embed_tokens.weight"
UNEMBEDDING = "lm_head.weight"


def weight_table(config: DecoderConfig) -> tuple[Weight, ...]:
    """Every parameter of the decoder that `config` describes."""
    c = config
    d, f, v = c.width, c.ffn_width, c.vocab_size
    n, k, h = c.num_heads, c.num_kv_heads, c.head_dim
    rows = []

    def row(name, stored_shape, path, shape=None, transform="reshape"):
        shape = stored_shape if shape is None else shape
        rows.append(Weight(name, stored_shape, tuple(path.split("/")), shape, transform))

    def layer_row(name, stored_shape, path, *rest):
        row("model.layers.{layer}." + name, stored_shape, "layers/" + path, *rest)

    row(EMBEDDING, (v, d), "embedding")
    row("model.norm.weight", (d,), "final_norm/weight")
    if not c.tie_embeddings:
        row(UNEMBEDDING, (v, d), "unembed_kernel", (d, v), "transpose")

    for letter, heads in (("q", n), ("k", k), ("v", k)):
        name, path = f"self_attn.{letter}_proj", f"attention/{letter}"
        layer_row(f"{name}.weight", (heads * h, d), f"{path}_kernel", (d, heads, h), "transpose")
        if c.qkv_bias:
            layer_row(f"{name}.bias", (heads * h,), f"{path}_bias", (heads, h))
    layer_row("self_attn.o_proj.weight", (d, n * h), "attention/o_kernel", (n, h, d), "transpose")
    if c.qk_norm:
        layer_row("self_attn.q_norm.weight", (h,), "attention/q_norm/weight")
        layer_row("self_attn.k_norm.weight", (h,), "attention/k_norm/weight")

    layer_row("mlp.gate_proj.weight", (f, d), "ffn/gate_kernel", (d, f), "transpose")
    layer_row("mlp.up_proj.weight", (f, d), "ffn/up_kernel", (d, f), "transpose")
    layer_row("mlp.down_proj.weight", (d, f), "ffn/down_kernel", (f, d), "transpose")

    layer_row("input_layernorm.weight", (d,), "attention_norm/weight")
    if c.sandwich_norms:
        layer_row("post_attention_layernorm.weight", (d,), "attention_out_norm/weight")
        layer_row("pre_feedforward_layernorm.weight", (d,), "ffn_norm/weight")
        layer_row("post_feedforward_layernorm.weight", (d,), "ffn_out_norm/weight")
    else:  # the same name stands for another norm
        layer_row("post_attention_layernorm.weight", (d,), "ffn_norm/weight")
    return tuple(rows)
