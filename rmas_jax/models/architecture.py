"""Static description of a decoder: one frozen dataclass, whose fields cover all families."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.activations import ACTIVATIONS
from rmas_jax.models.errors import UnsupportedModelError
from rmas_jax.models.rope import UNSCALED, RopeScaling

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
# Sizes of linear layers, if any.
LINEAR_SIZES = {
    "linear_key_heads": "linear_num_key_heads",
    "linear_value_heads": "linear_num_value_heads",
    "linear_key_dim": "linear_key_head_dim",
    "linear_value_dim": "linear_value_head_dim",
    "conv_width": "linear_conv_kernel_dim",
}
# Maxima: far above every published model, small enough for exact arithmetic.
LIMITS = {
    "vocab_size": 2**24,
    "width": 2**20,
    "ffn_width": 2**22,
    "num_layers": 1024,
    "num_heads": 2**14,
    "num_kv_heads": 2**14,
    "head_dim": 2**14,
    "linear_key_heads": 2**14,
    "linear_value_heads": 2**14,
    "linear_key_dim": 2**14,
    "linear_value_dim": 2**14,
    "conv_width": 256,
    "loops": 1024,
}


def check_size(field: str, hf_field: str, size: Any) -> None:
    """Raises `UnsupportedModelError` unless `size` is an integer within LIMITS."""
    if type(size) is not int or not 1 <= size <= LIMITS[field]:  # bool is a subclass of int
        raise UnsupportedModelError(
            f"{hf_field} must be an integer from 1 to {LIMITS[field]}, got {shown(size)}"
        )


def check_positive(hf_field: str, value: Any) -> None:
    """Raises `UnsupportedModelError` unless `value` is finite and above 0."""
    if not 0 < value < math.inf:
        raise UnsupportedModelError(f"{hf_field} must be finite and above 0, got {shown(value)}")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder; hashable, so it is a static argument under `jit`.

    Letters of sizes: D width, F feed-forward, N query heads, K key/value heads, H head dim, L
    layers, V vocabulary.
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
    activation: str = "silu"  # key of ACTIVATIONS
    tie_embeddings: bool = False  # the unembedding is the transposed embedding
    qkv_bias: bool = False
    out_bias: bool = False  # on the output of attention
    ffn_bias: bool = False
    qk_norm: bool = False  # RMS norm over H of every query and key head
    unit_offset_norm: bool = False  # norm weights act as 1 + w
    sandwich_norms: bool = False  # norms also after attention and after the feed-forward
    embed_scale: float = 1.0  # factor on token embeddings, rounded to the compute dtype
    query_scale: float | None = None  # factor on queries; None is H ** -0.5
    gated_attention: bool = False  # attention's output times the sigmoid of a gate
    rope_scaling: RopeScaling = UNSCALED  # for contexts longer than in pretraining
    rotary_fraction: float = 1.0  # share of H that rotates, its first part
    window: int | None = None  # keys visible to a sliding layer, including the position itself
    sliding_layers: tuple[bool, ...] = ()  # [L] True in sliding layers; () is none
    local_rope_theta: float | None = None  # rotary base of sliding layers; None: rope_theta
    local_rope_scaling: RopeScaling = UNSCALED  # used with local_rope_theta
    linear_layers: tuple[bool, ...] = ()  # [L] True with a gated delta rule instead of attention
    linear_key_heads: int = 0  # of linear layers; divides linear_value_heads
    linear_value_heads: int = 0
    linear_key_dim: int = 0  # size of a linear layer's key head
    linear_value_dim: int = 0  # size of a linear layer's value head
    conv_width: int = 0  # positions in the convolution of a linear layer
    loops: int | None = None  # of a looped decoder with an exit gate; None: not looped

    def __post_init__(self) -> None:
        for field, hf_field in SIZES.items():
            check_size(field, hf_field, getattr(self, field))
        check_positive("rms_norm_eps", self.norm_eps)
        check_positive("rope_theta", self.rope_theta)
        if self.local_rope_theta is not None:
            check_positive("rope_local_base_freq", self.local_rope_theta)
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_attention_heads must be a multiple of num_key_value_heads "
                f"({self.num_kv_heads}), got {self.num_heads}"
            )
        if self.activation not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {shown(self.activation)}"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"head_dim must be even, got {self.head_dim}")
        if not 0 < self.rotary_fraction <= 1 or self.rotated_dim % 2 or not self.rotated_dim:
            raise UnsupportedModelError(
                f"partial_rotary_factor must give an even number of head_dim={self.head_dim}, got "
                f"{self.rotary_fraction!r}"
            )
        for scaling in (self.rope_scaling, self.local_rope_scaling):
            scaling.check_rotated(self.rotated_dim)
        for name in ("sliding_layers", "linear_layers"):
            if len(getattr(self, name)) not in (0, self.num_layers):
                raise UnsupportedModelError(
                    f"{name} must have num_layers={self.num_layers} entries or none, got "
                    f"{len(getattr(self, name))}"
                )
        if any(self.sliding_layers) and (self.window is None or self.window < 1):
            raise UnsupportedModelError(
                "sliding_window must be an integer of at least 1 with sliding layers, got "
                f"{self.window!r}"
            )
        if any(self.linear_layers):
            for field, hf_field in LINEAR_SIZES.items():
                check_size(field, hf_field, getattr(self, field))
            if self.linear_value_heads % self.linear_key_heads:
                raise UnsupportedModelError(
                    f"linear_num_value_heads must be a multiple of linear_num_key_heads "
                    f"({self.linear_key_heads}), got {self.linear_value_heads}"
                )
            if self.conv_width < 2:
                raise UnsupportedModelError("linear_conv_kernel_dim must be at least 2, got 1")
            if all(self.linear_layers):
                raise UnsupportedModelError(
                    "layer_types must have a layer with attention, got linear ones alone"
                )
        if self.loops is not None:
            check_size("loops", "total_ut_steps", self.loops)

    @property
    def has_unembedding(self) -> bool:
        """Whether the unembedding is a weight of its own."""
        return not self.tie_embeddings

    @property
    def rotated_dim(self) -> int:
        """Number of rotated dimensions of a head."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def position_limit(self) -> int | None:
        """Maximum number of positions under dynamic or longrope scaling; None without."""
        scalings = (self.rope_scaling, self.local_rope_scaling)
        limits = [s.position_limit for s in scalings if s.position_limit is not None]
        return min(limits, default=None)

    @property
    def linear_conv_dim(self) -> int:
        """Channels of a linear layer's convolution: queries, keys and values."""
        keys = self.linear_key_heads * self.linear_key_dim
        return 2 * keys + self.linear_value_heads * self.linear_value_dim

    @property
    def period(self) -> int:
        """The smallest period of the layer kinds; it divides L."""
        kinds = self.linear_layers
        return next(
            p
            for p in range(1, self.num_layers + 1)
            if self.num_layers % p == 0 and kinds == kinds[:p] * (len(kinds) // p)
        )

    @property
    def num_loops(self) -> int:
        """Number of applications of the layers."""
        return self.loops or 1

    @property
    def num_linear_states(self) -> int:
        """Linear layers, counted once per loop."""
        return self.num_loops * sum(self.linear_layers)

    @property
    def num_kv_caches(self) -> int:
        """Layers with attention, counted once per loop."""
        return self.num_loops * (self.num_layers - sum(self.linear_layers))
