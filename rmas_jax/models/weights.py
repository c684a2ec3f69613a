"""Where each parameter of a decoder is kept in a Hugging Face checkpoint, as one table.

A row says the name there, the path here and the transform between the two; loading, saving and all
checks are derived from the rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from rmas_jax.host.errors import InputError
from rmas_jax.models.config import DecoderConfig


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or does not hold the weights of its model."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter, in a checkpoint and in the parameter tree.

    A name with `{layer}` stands for one tensor per layer; here they are stacked on axis 0. Where
    the kinds of layers repeat with a period, a row stands for every `period`-th layer from `first`.
    """

    name: str  # in the checkpoint
    stored_shape: tuple[int, ...]  # in the checkpoint
    path: tuple[str, ...]  # in the parameter tree
    shape: tuple[int, ...]  # in the parameter tree, without the axis of layers
    transform: str  # key of TRANSFORMS
    first: int = 0
    period: int = 1

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.name

    def names(self, num_layers: int) -> list[str]:
        """Names of all tensors of this row, in the order of the layers."""
        if not self.is_stacked:
            return [self.name]
        layers = range(self.first, num_layers, self.period)
        return [self.name.format(layer=layer) for layer in layers]

    def layers(self, num_layers: int) -> list[Weight]:
        """A row for each layer alone, whose parameter has no axis of layers."""
        return [dataclasses.replace(self, name=name) for name in self.names(num_layers)]

    def param_shape(self, num_layers: int) -> tuple[int, ...]:
        """Shape in the parameter tree, with the axis of layers where there is one."""
        return (num_layers // self.period, *self.shape) if self.is_stacked else self.shape

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

# What a checkpoint may hold beside the decoder: buffers of older files, which are computed here;
# the vision parts of multimodal checkpoints; Qwen3.5's layers for predicting several tokens; heads
# that read the last hidden state (values of reinforcement learning, scores of reward models).
IGNORED = re.compile(
    r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
    r"|(.*\.)?(position_ids|masked_bias)"
    r"|(model\.)?(vision_tower|multi_modal_projector|visual)\..*"
    r"|mtp\..*"
    r"|(v_head|value_head|score)\..*"
)
# Names that show packed weights, of GPTQ, AWQ, fp8, compressed-tensors and bitsandbytes.
QUANTISED = re.compile(
    r".*\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|input_scale|SCB"
    r"|weight\.(absmax|quant_map|quant_state\..*))"
)
PREFIX = "model."
# What the decoder's names begin with -> what the vocabulary projection's name begins with: a text
# model; the text tower of a checkpoint with vision; the same as older releases name it; and the
# two as saved without the model around them, which had the projection.
PREFIXES = {
    PREFIX: "",
    "model.language_model.": "",
    "language_model.model.": "language_model.",
    "language_model.": "",
    "": "",
}


def embedding_name(prefix: str = PREFIX) -> str:
    """Name of the token embeddings in a checkpoint whose decoder has this prefix."""
    return prefix + "embed_tokens.weight"


def unembedding_name(prefix: str = PREFIX) -> str:
    """Name of the vocabulary projection, which stands beside the decoder."""
    return PREFIXES[prefix] + "lm_head.weight"


EMBEDDING = embedding_name()
UNEMBEDDING = unembedding_name()


def stored_prefix(names: Iterable[str]) -> str:
    """The prefix of PREFIXES under which a checkpoint with these names has its decoder."""
    names = set(names)
    return next((prefix for prefix in PREFIXES if embedding_name(prefix) in names), PREFIX)


# Norms around attention and feed-forward: path -> name in a layer.
NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
SANDWICH_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",  # the same name stands for another norm
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_out_norm": "post_feedforward_layernorm",
}
OURO_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "input_layernorm_2",
    "ffn_norm": "post_attention_layernorm",
    "ffn_out_norm": "post_attention_layernorm_2",
}


def _row(
    name: str,
    stored_shape: tuple[int, ...],
    path: str,
    shape: tuple[int, ...] | None = None,
    transform: str = "reshape",
) -> Weight:
    """A row of the table; shapes are the same unless two are given."""
    shape = stored_shape if shape is None else shape
    return Weight(name, stored_shape, tuple(path.split("/")), shape, transform)


def weight_table(config: DecoderConfig, prefix: str = PREFIX) -> tuple[Weight, ...]:
    """Every parameter of the decoder that `config` describes.

    Args:
      config: the decoder.
      prefix: what names in the checkpoint begin with, see `stored_prefix`.
    """
    c = config
    d, v = c.width, c.vocab_size
    rows = []

    def row(*args):
        rows.append(_row(*args))

    row(embedding_name(prefix), (v, d), "embedding")
    row(prefix + "norm.weight", (d,), "final_norm/weight")
    if not c.tie_embeddings:
        row(unembedding_name(prefix), (v, d), "unembed_kernel", (d, v), "transpose")
    if c.loops is not None:
        row(prefix + "early_exit_gate.weight", (1, d), "exit_kernel", (d, 1), "transpose")
        row(prefix + "early_exit_gate.bias", (1,), "exit_bias")

    for place in range(c.period):
        linear = bool(c.linear_layers) and c.linear_layers[place]
        inside = ("layers",) if c.period == 1 else ("layers", f"place_{place}")
        for weight in _layer_rows(c, linear):
            rows.append(
                dataclasses.replace(
                    weight,
                    name=prefix + "layers.{layer}." + weight.name,
                    path=(*inside, *weight.path),
                    first=place,
                    period=c.period,
                )
            )
    return tuple(rows)


def _layer_rows(config: DecoderConfig, linear: bool) -> list[Weight]:
    """The parameters of one layer, with names and paths from the layer on."""
    c = config
    d, f = c.width, c.ffn_width
    rows = []

    def row(*args):
        rows.append(_row(*args))

    if linear:
        n, h = c.linear_value_heads, c.linear_value_dim
        channels = c.linear_conv_dim
        at = "linear_attn."
        row(
            at + "in_proj_qkv.weight",
            (channels, d),
            "linear/qkv_kernel",
            (d, channels),
            "transpose",
        )
        row(at + "in_proj_z.weight", (n * h, d), "linear/gate_kernel", (d, n, h), "transpose")
        row(at + "in_proj_b.weight", (n, d), "linear/rate_kernel", (d, n), "transpose")
        row(at + "in_proj_a.weight", (n, d), "linear/decay_kernel", (d, n), "transpose")
        row(at + "dt_bias", (n,), "linear/decay_bias")
        row(at + "A_log", (n,), "linear/decay_log")
        conv = (c.conv_width, channels)
        row(
            at + "conv1d.weight",
            (channels, 1, c.conv_width),
            "linear/conv_kernel",
            conv,
            "transpose",
        )
        row(at + "norm.weight", (h,), "linear/norm_weight")
        row(at + "out_proj.weight", (d, n * h), "linear/out_kernel", (n, h, d), "transpose")
    else:
        n, k, h = c.num_heads, c.num_kv_heads, c.head_dim
        wide = 2 * h if c.gated_attention else h  # each head's query, then its gate
        for letter, heads, size in (("q", n, wide), ("k", k, h), ("v", k, h)):
            name, path = f"self_attn.{letter}_proj", f"attention/{letter}"
            shape = (d, heads, size)
            row(f"{name}.weight", (heads * size, d), f"{path}_kernel", shape, "transpose")
            if c.qkv_bias:
                row(f"{name}.bias", (heads * size,), f"{path}_bias", (heads, size))
        row("self_attn.o_proj.weight", (d, n * h), "attention/o_kernel", (n, h, d), "transpose")
        if c.out_bias:
            row("self_attn.o_proj.bias", (d,), "attention/o_bias")
        if c.qk_norm:
            row("self_attn.q_norm.weight", (h,), "attention/q_norm/weight")
            row("self_attn.k_norm.weight", (h,), "attention/k_norm/weight")

    for part, (inputs, outputs) in {"gate": (d, f), "up": (d, f), "down": (f, d)}.items():
        name, path = f"mlp.{part}_proj", f"ffn/{part}"
        row(f"{name}.weight", (outputs, inputs), f"{path}_kernel", (inputs, outputs), "transpose")
        if c.ffn_bias:
            row(f"{name}.bias", (outputs,), f"{path}_bias")
    norms = SANDWICH_NORMS if c.sandwich_norms else NORMS
    for path, name in (OURO_NORMS if c.model_type == "ouro" else norms).items():
        row(f"{name}.weight", (d,), f"{path}/weight")
    return rows
