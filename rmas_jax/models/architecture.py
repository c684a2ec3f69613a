"""Static description of a decoder: one frozen dataclass; a family is a choice of its fields."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmas_jax.host.errors import InputError
from rmas_jax.models.rope import UNSCALED, RopeScaling


class UnsupportedModelError(InputError):
    """The checkpoint asks for something that these ports do not implement."""


# Positive integers: our field -> Hugging Face field.
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "ffn_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
# Those of linear layers, where there are any.
LINEAR_SIZES = {
    "linear_key_heads": "linear_num_key_heads",
    "linear_value_heads": "linear_num_value_heads",
    "linear_key_dim": "linear_key_head_dim",
    "linear_value_dim": "linear_value_head_dim",
    "conv_width": "linear_conv_kernel_dim",
}


def check_size(hf_field: str, size: Any) -> None:
    """Raises `UnsupportedModelError` unless `size` is a positive integer."""
    if type(size) is not int or size < 1:  # bool is an int too, and no size
        raise UnsupportedModelError(f"{hf_field}={size!r}: allowed is a positive integer")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder; hashable, so it is a static argument under `jit`.

    Sizes use the letters of the project: D width, F feed-forward, N query heads, K key/value heads,
    H head dim, L layers, V vocabulary.
    """

    model_type: str  # Hugging Face name, for example "qwen3"
    vocab_size: int  # V
    width: int  # D
    ffn_width: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K, divides N
    head_dim: int  # H, not D / N in every family
    rope_theta: float  # base of the rotary angles
    norm_eps: float = 1e-6
    activation: str = "silu"  # "silu" | "gelu_tanh"
    tie_embeddings: bool = False  # the unembedding is the transposed embedding
    qkv_bias: bool = False
    qk_norm: bool = False  # RMS norm over H of every query and key head
    unit_offset_norm: bool = False  # norm weights act as 1 + w
    sandwich_norms: bool = False  # norms also after attention and after the feed-forward
    embed_scale: float = 1.0  # factor on token embeddings, rounded to the compute dtype
    query_scale: float | None = None  # factor on queries; None is H ** -0.5
    gated_attention: bool = False  # attention's output times the sigmoid of a gate
    rope_scaling: RopeScaling = UNSCALED  # for contexts longer than in pretraining
    rotary_fraction: float = 1.0  # the first part of H rotates, the rest does not
    window: int | None = None  # keys a sliding layer sees, itself included
    sliding_layers: tuple[bool, ...] = ()  # [L] which layers slide; () is none
    local_rope_theta: float | None = None  # rotary base of sliding layers; None is all the same
    local_rope_scaling: RopeScaling = UNSCALED  # read where local_rope_theta is given
    linear_layers: tuple[bool, ...] = ()  # [L] which have a gated delta rule, not attention
    linear_key_heads: int = 0  # of linear layers, which divides the next
    linear_value_heads: int = 0
    linear_key_dim: int = 0  # size of one such key head
    linear_value_dim: int = 0  # and of one value head
    conv_width: int = 0  # positions that the convolution of a linear layer sees
    passes: int | None = None  # of a looped decoder, which has an exit gate; None: not looped

    def __post_init__(self):
        for field, hf_field in SIZES.items():
            check_size(hf_field, getattr(self, field))
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_attention_heads={self.num_heads} is not a multiple of "
                f"num_key_value_heads={self.num_kv_heads}"
            )
        if self.activation not in ("silu", "gelu_tanh"):
            raise UnsupportedModelError(
                f"hidden_act={self.activation!r}: allowed are silu and gelu_pytorch_tanh"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"head_dim={self.head_dim} is odd; rotary needs pairs")
        if not 0 < self.rotary_fraction <= 1 or self.rotated_dim % 2 or not self.rotated_dim:
            raise UnsupportedModelError(
                f"partial_rotary_factor={self.rotary_fraction!r} of head_dim={self.head_dim}: "
                "allowed is an even number of rotated dimensions"
            )
        for name in ("sliding_layers", "linear_layers"):
            if len(getattr(self, name)) not in (0, self.num_layers):
                raise UnsupportedModelError(
                    f"{name} has {len(getattr(self, name))} entries, "
                    f"num_layers is {self.num_layers}"
                )
        if any(self.sliding_layers) and not self.window:
            raise UnsupportedModelError(
                f"sliding_window={self.window!r}: a sliding layer needs a positive integer"
            )
        if any(self.linear_layers):
            for field, hf_field in LINEAR_SIZES.items():
                check_size(hf_field, getattr(self, field))
            if self.linear_value_heads % self.linear_key_heads:
                raise UnsupportedModelError(
                    f"linear_num_value_heads={self.linear_value_heads} is not a multiple of "
                    f"linear_num_key_heads={self.linear_key_heads}"
                )
            if self.conv_width < 2:
                raise UnsupportedModelError("linear_conv_kernel_dim=1: allowed is 2 and more")
            if all(self.linear_layers):
                raise UnsupportedModelError("layer_types: allowed is at least one with attention")
        if self.passes is not None:
            check_size("total_ut_steps", self.passes)

    @property
    def rotated_dim(self) -> int:
        """How many dimensions of a head rotate."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def linear_conv_dim(self) -> int:
        """Channels of a linear layer's convolution: queries, keys and values."""
        keys = self.linear_key_heads * self.linear_key_dim
        return 2 * keys + self.linear_value_heads * self.linear_value_dim

    @property
    def period(self) -> int:
        """The smallest number of layers after which their kinds repeat; it divides L."""
        kinds = self.linear_layers
        return next(
            p
            for p in range(1, self.num_layers + 1)
            if self.num_layers % p == 0 and kinds == kinds[:p] * (len(kinds) // p)
        )

    @property
    def num_passes(self) -> int:
        """How often the layers are applied."""
        return self.passes or 1

    @property
    def num_linear_states(self) -> int:
        """Linear layers, one for each pass."""
        return self.num_passes * sum(self.linear_layers)

    @property
    def num_kv_caches(self) -> int:
        """Layers with attention, one for each pass."""
        return self.num_passes * (self.num_layers - sum(self.linear_layers))
