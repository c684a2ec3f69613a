"""The weights of a decoder as a table: one row per weight, with all its properties.

    Row("attention/q_kernel", "self_attn.q_proj.weight", "(N Hq) D", int8="D")
         in the parameter tree     in a checkpoint         dimensions

The rows determine the modules' parameters, loading and saving, sharding, int8 storage and abstract
arrays. To port a family, add rows for its new weights, and entries in STORED_NAMES for weights with
other names in its checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from rmas_jax.models.architecture import DecoderConfig
from rmas_jax.models.projection import LowRankKernel
from rmas_jax.models.stored_names import PREFIX, with_prefix
from rmas_jax.partition import Partition
from rmas_jax.sharding import named_sharding

# --- The table ------------------------------------------------------------------------------------


class Dimension(NamedTuple):
    """A dimension of weights."""

    size: Callable[[DecoderConfig], int]
    axis: str | None = None  # logical axis for `rmas_jax.sharding`; None: not split


DIMENSIONS = {
    "V": Dimension(lambda c: c.vocab_size, "vocab"),
    "D": Dimension(lambda c: c.width, "embed"),
    "d": Dimension(lambda c: c.width),  # the width in vectors, whole on every device
    "F": Dimension(lambda c: c.ffn_width, "ffn"),
    "N": Dimension(lambda c: c.num_heads, "heads"),
    "K": Dimension(lambda c: c.num_kv_heads, "kv_heads"),
    "H": Dimension(lambda c: c.head_dim, "head_dim"),
    # A head's query, followed by its gate, if any.
    "Hq": Dimension(lambda c: c.head_dim * (2 if c.gated_attention else 1), "head_dim"),
    # Linear layers: value heads and their size, channels and width of the convolution. The channels
    # are queries, keys and values side by side; a split would cut across the three.
    "Nv": Dimension(lambda c: c.linear_value_heads, "heads"),
    "Hv": Dimension(lambda c: c.linear_value_dim, "head_dim"),
    "C": Dimension(lambda c: c.linear_conv_dim),
    "W": Dimension(lambda c: c.conv_width),
    "1": Dimension(lambda c: 1),
}

INITIALISERS: dict[str, Callable[[DecoderConfig], jax.nn.initializers.Initializer]] = {
    "normal": lambda c: nn.initializers.normal(0.02),
    "zeros": lambda c: nn.initializers.zeros,
    "ones": lambda c: nn.initializers.ones,
    # A norm starts with factors of 1; some families store the factor minus 1.
    "unit": lambda c: nn.initializers.zeros if c.unit_offset_norm else nn.initializers.ones,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """All properties of one weight."""

    path: str  # in the parameter tree; of a layer's weight within its layer
    stored: str  # name in a checkpoint, within its layer, unless STORED_NAMES has another
    # Keys of DIMENSIONS: stored -> in the parameter, as in einops; parentheses join dimensions that
    # the checkpoint stores as one. Without an arrow both sides are the same, except that joined
    # dimensions are split in the parameter. The matrix of a projection is [out, in], as in torch.
    layout: str
    init: str = "normal"  # key of INITIALISERS
    when: str = ""  # field of `DecoderConfig` that enables this weight
    int8: str = ""  # dimensions that share a scale in int8; none: not quantised

    @functools.cached_property
    def stored_dims(self) -> tuple[tuple[str, ...], ...]:
        """Stored dimensions, each as a tuple of the joined dimensions."""
        groups = re.findall(r"\(.*?\)|\S+", self.layout.partition(" -> ")[0])
        return tuple(tuple(group.strip("()").split()) for group in groups)

    @functools.cached_property
    def dims(self) -> tuple[str, ...]:
        """Dimensions of the parameter."""
        here = self.layout.partition(" -> ")[2]
        return tuple(here.split()) if here else self.flat_dims

    @functools.cached_property
    def flat_dims(self) -> tuple[str, ...]:
        """Dimensions in their stored order; some of size 1 exist only there."""
        return tuple(d for group in self.stored_dims for d in group)

    def is_in(self, config: DecoderConfig) -> bool:
        """Whether a decoder has this weight (in layers of its kind)."""
        return not self.when or bool(getattr(config, self.when))

    def shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Shape of the parameter in one layer."""
        return tuple(DIMENSIONS[d].size(config) for d in self.dims)


# Weights outside the layers, with a text model's names; other models' have another prefix.
DECODER = (
    Row("embedding", "model.embed_tokens.weight", "V D", int8="D"),
    Row("final_norm/weight", "model.norm.weight", "d", "unit"),
    Row("unembed_kernel", "lm_head.weight", "V D", int8="D", when="has_unembedding"),
    Row("exit_kernel", "model.early_exit_gate.weight", "1 d -> d", when="loops"),
    Row("exit_bias", "model.early_exit_gate.bias", "1", "zeros", "loops"),
)
# Weights of every layer: the feed-forward, and norms before and after it and attention.
LAYER = (
    Row("ffn/gate_kernel", "mlp.gate_proj.weight", "F D", int8="D"),
    Row("ffn/gate_bias", "mlp.gate_proj.bias", "F", "zeros", "ffn_bias"),
    Row("ffn/up_kernel", "mlp.up_proj.weight", "F D", int8="D"),
    Row("ffn/up_bias", "mlp.up_proj.bias", "F", "zeros", "ffn_bias"),
    Row("ffn/down_kernel", "mlp.down_proj.weight", "D F", int8="F"),
    Row("ffn/down_bias", "mlp.down_proj.bias", "d", "zeros", "ffn_bias"),
    Row("attention_norm/weight", "input_layernorm.weight", "d", "unit"),
    Row("attention_out_norm/weight", "input_layernorm_2.weight", "d", "unit", "sandwich_norms"),
    Row("ffn_norm/weight", "post_attention_layernorm.weight", "d", "unit"),
    Row("ffn_out_norm/weight", "post_attention_layernorm_2.weight", "d", "unit", "sandwich_norms"),
)
# Weights of layers with attention.
ATTENTION = (
    Row("attention/q_kernel", "self_attn.q_proj.weight", "(N Hq) D", int8="D"),
    Row("attention/q_bias", "self_attn.q_proj.bias", "(N Hq)", "zeros", "qkv_bias"),
    Row("attention/k_kernel", "self_attn.k_proj.weight", "(K H) D", int8="D"),
    Row("attention/k_bias", "self_attn.k_proj.bias", "(K H)", "zeros", "qkv_bias"),
    Row("attention/v_kernel", "self_attn.v_proj.weight", "(K H) D", int8="D"),
    Row("attention/v_bias", "self_attn.v_proj.bias", "(K H)", "zeros", "qkv_bias"),
    Row("attention/o_kernel", "self_attn.o_proj.weight", "D (N H)", int8="N H"),
    Row("attention/o_bias", "self_attn.o_proj.bias", "d", "zeros", "out_bias"),
    Row("attention/q_norm/weight", "self_attn.q_norm.weight", "H", "unit", "qk_norm"),
    Row("attention/k_norm/weight", "self_attn.k_norm.weight", "H", "unit", "qk_norm"),
)
# Weights of linear layers. The small matrices of rates and decays are not quantised.
LINEAR = (
    Row("linear/qkv_kernel", "linear_attn.in_proj_qkv.weight", "C D", int8="D"),
    Row("linear/gate_kernel", "linear_attn.in_proj_z.weight", "(Nv Hv) D", int8="D"),
    Row("linear/rate_kernel", "linear_attn.in_proj_b.weight", "Nv D"),
    Row("linear/decay_kernel", "linear_attn.in_proj_a.weight", "Nv D"),
    Row("linear/decay_bias", "linear_attn.dt_bias", "Nv", "ones"),
    Row("linear/decay_log", "linear_attn.A_log", "Nv", "zeros"),
    Row("linear/conv_kernel", "linear_attn.conv1d.weight", "C 1 W -> W C"),
    Row("linear/norm_weight", "linear_attn.norm.weight", "Hv", "ones"),
    Row("linear/out_kernel", "linear_attn.out_proj.weight", "D (Nv Hv)", int8="Nv Hv"),
)
ROWS = {row.path: row for row in (*DECODER, *LAYER, *ATTENTION, *LINEAR)}

# Family -> path of a row -> its name in checkpoints of this family, if different.
STORED_NAMES = {
    "gemma3_text": {
        "attention_out_norm/weight": "post_attention_layernorm.weight",
        "ffn_norm/weight": "pre_feedforward_layernorm.weight",
        "ffn_out_norm/weight": "post_feedforward_layernorm.weight",
    },
}

# --- The rows with the sizes of a decoder ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of a decoder, with all its layers: a row with the decoder's sizes."""

    row: Row
    config: DecoderConfig
    path: tuple[str, ...]  # in the parameter tree
    names: tuple[str, ...]  # of its tensors in the checkpoint, one per layer, in order
    is_stacked: bool  # whether its layers are stacked on axis 0

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape in the parameter tree, of one layer."""
        return self.row.shape(self.config)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the parameter tree."""
        return (len(self.names), *self.layer_shape) if self.is_stacked else self.layer_shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of each tensor in the checkpoint."""
        sizes = self.sizes
        return tuple(math.prod(sizes[d] for d in group) for group in self.row.stored_dims)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of all dimensions of the parameter and of the stored tensor."""
        return {d: DIMENSIONS[d].size(self.config) for d in self.row.flat_dims}

    @property
    def is_linear(self) -> bool:
        """Whether it is the matrix [out, in] of a linear layer in torch; not the embeddings."""
        return self.is_stacked and len(self.row.stored_dims) == 2

    @property
    def logical_axes(self) -> tuple[str | None, ...]:
        """Logical axis of each dimension of the parameter."""
        axes = tuple(DIMENSIONS[d].axis for d in self.row.dims)
        return ("layers", *axes) if self.is_stacked else axes

    @property
    def scale_axes(self) -> tuple[int, ...]:
        """Axes, in one layer, that share a scale in int8; (): not quantised."""
        shared = self.row.int8.split()
        return tuple(axis for axis, d in enumerate(self.row.dims) if d in shared)

    def layers(self) -> list[Weight]:
        """A weight per layer, without an axis of layers."""
        return [dataclasses.replace(self, names=(n,), is_stacked=False) for n in self.names]

    def sharding(
        self, mesh: Mesh | None, shape: Sequence[int] | None = None
    ) -> NamedSharding | None:
        """The sharding of an array of this weight; None without a mesh.

        Args:
          mesh: see `rmas_jax.sharding`.
          shape: of the array, if not the parameter's: dimensions of another size, as in int8
            scales, are whole on every device.
        """
        if mesh is None:
            return None
        return named_sharding(
            self.shape if shape is None else shape, self.logical_axes, mesh, full_shape=self.shape
        )

    def abstract(self, dtype: Any, mesh: Mesh | None = None) -> jax.ShapeDtypeStruct:
        """The parameter without its values."""
        return jax.ShapeDtypeStruct(self.shape, jnp.dtype(dtype), sharding=self.sharding(mesh))

    def to_stored(self, param: np.ndarray) -> np.ndarray:
        """The parameter of one layer -> the tensor to store; inverse of `partition.read_part`."""
        here, there = self.row.dims, self.row.flat_dims
        kept = [here.index(d) for d in there if d in here]
        return np.transpose(param, kept).reshape(self.stored_shape)

    def from_stored(self, layers: jax.Array) -> jax.Array:
        """The tensors of all layers, stacked -> the parameter; inverse of `to_stored`."""
        kept = [d for d in self.row.flat_dims if d in self.row.dims]  # the others are of size 1
        split = layers.reshape(len(layers), *(self.sizes[d] for d in kept))
        return split.transpose(0, *(1 + kept.index(d) for d in self.row.dims))


def weight_table(config: DecoderConfig, prefix: str = PREFIX) -> tuple[Weight, ...]:
    """Every parameter of a decoder.

    Layers are stacked on axis 0. If the layer kinds have a period, each place in it has its own
    weights, with every `period`-th layer.

    Args:
      config: of the decoder.
      prefix: of names in the checkpoint, see `stored_names.stored_prefix`.
    """
    c = config
    renamed = STORED_NAMES.get(c.model_type, {})

    def weight(row: Row, inside: tuple[str, ...], layers: Sequence[int] | None) -> Weight:
        stored = renamed.get(row.path, row.stored)
        plain = [stored] if layers is None else [f"model.layers.{i}.{stored}" for i in layers]
        names = tuple(with_prefix(name, prefix) for name in plain)
        return Weight(row, c, (*inside, *row.path.split("/")), names, layers is not None)

    table = [weight(row, (), None) for row in DECODER if row.is_in(c)]
    for place in range(c.period):
        inside = ("layers",) if c.period == 1 else ("layers", f"place_{place}")
        layers = range(place, c.num_layers, c.period)
        mixer = LINEAR if c.linear_layers and c.linear_layers[place] else ATTENTION
        table += [weight(row, inside, layers) for row in (*mixer, *LAYER) if row.is_in(c)]
    return tuple(table)


def parameter(module: Any, path: str) -> Any:
    """Declares the weight of a row as a parameter of a module with `config`, and returns it."""
    row, config = ROWS[path], module.config
    name = path.rpartition("/")[2]
    return module.param(name, INITIALISERS[row.init](config), row.shape(config))


def used_parameter(module: Any, path: str) -> Any:
    """`parameter` of a module with `partition`, where the policy has weights at their use."""
    return used(parameter(module, path), path, module.config, module.partition)


def used(param: Any, path: str, config: DecoderConfig, partition: Partition) -> Any:
    """A parameter, of one layer or outside the layers, where the policy has weights at their use.

    Where layers take their place as a phase begins (`placed_layers`), nothing is stated again: a
    gradient through a loop would store every layer's weights as values of their own.
    """
    row = ROWS[path]
    if not partition.gathers_at_use and row not in DECODER:
        return param
    axes = tuple(DIMENSIONS[d].axis for d in row.dims)
    return _placed(param, axes, row.shape(config), partition)


def placed_layers(params: Any, config: DecoderConfig, partition: Partition) -> Any:
    """The parameters of a decoder, with those of its layers where the policy has them at their use.

    Tables of the vocabulary stay: a lookup gathers none, and `Agent.with_unembedding` the other.
    """
    flat = flatten_dict(params)
    for weight in weight_table(config):
        if weight.is_stacked:
            flat[weight.path] = _placed(
                flat[weight.path], weight.logical_axes, weight.shape, partition
            )
    return unflatten_dict(flat)


def apart(params: Any) -> Any:
    """Parameters of a decoder with each layer's in arrays of its own, "0", "1", ... of "layers".

    A period of layers counts as one.
    """
    stacked = params["layers"]
    number = jax.tree.leaves(stacked)[0].shape[0]
    layers = {f"{place}": jax.tree.map(lambda x, i=place: x[i], stacked) for place in range(number)}
    return {**params, "layers": layers}


def _placed(
    param: Any, axes: Sequence[str | None], shape: Sequence[int], partition: Partition
) -> Any:
    """A parameter by its logical axes; the factors of an update are as the compiler has them."""
    if isinstance(param, LowRankKernel):
        return param.replace(merged=_placed(param.merged, axes, shape, partition))
    return jax.tree.map(lambda x: partition.constrain(x, *axes, full_shape=shape), param)
