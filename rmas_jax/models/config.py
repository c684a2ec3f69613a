"""Static description of a dense decoder, read from a Hugging Face `config.json`.

One frozen dataclass serves every dense family; a family is nothing but a choice of its fields.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any


class UnsupportedModelError(ValueError):
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


def _check_size(hf_field: str, size: Any) -> None:
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
    window: int | None = None  # keys a sliding layer sees, itself included
    sliding_layers: tuple[bool, ...] = ()  # [L] which layers slide; () is none
    local_rope_theta: float | None = None  # rotary base of sliding layers; None is rope_theta

    def __post_init__(self):
        for field, hf_field in SIZES.items():
            _check_size(hf_field, getattr(self, field))
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
        if self.sliding_layers and len(self.sliding_layers) != self.num_layers:
            raise UnsupportedModelError(
                f"sliding_layers has {len(self.sliding_layers)} entries, "
                f"num_layers is {self.num_layers}"
            )
        if any(self.sliding_layers) and not self.window:
            raise UnsupportedModelError(
                f"sliding_window={self.window!r}: a sliding layer needs a positive integer"
            )


ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
HF_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def _theta(raw: dict[str, Any], old_key: str, default: float, kind: str | None = None) -> float:
    """Rotary base of one layer kind, from `rope_parameters` or from the key of older files."""
    rope = raw.get("rope_parameters") or {}
    rope = rope.get(kind, rope)  # Gemma-3 has one dictionary per layer kind
    scaling = raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type")
    if rope_type not in (None, "default"):
        raise UnsupportedModelError(f"rope_type={rope_type!r}: allowed is 'default'")
    return float(rope.get("rope_theta") or raw.get(old_key) or default)


def _sliding_layers(raw: dict[str, Any]) -> tuple[bool, ...]:
    """Which layers attend to a window, from `layer_types` (empty where the file has none)."""
    known = {"full_attention": False, "sliding_attention": True}
    kinds = raw.get("layer_types") or ()
    if kinds and len(kinds) != raw["num_hidden_layers"]:
        raise UnsupportedModelError(
            f"layer_types names {len(kinds)} layers, "
            f"num_hidden_layers is {raw['num_hidden_layers']}"
        )
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModelError(f"layer type {kind!r}: allowed are {sorted(known)}")
    return tuple(known[kind] for kind in kinds)


def _dense(raw: dict[str, Any], *, refused: tuple[str, ...], **family: Any) -> DecoderConfig:
    """Fields all dense families share.

    `refused` are options that must be off; `family` holds the fields in which families differ.
    """
    for option in refused:
        if raw.get(option):
            raise UnsupportedModelError(f"{option}={raw[option]!r}: allowed are null and false")
    family.setdefault("activation", raw.get("hidden_act", "silu"))
    if family["activation"] not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"hidden_act={family['activation']!r}: allowed are {sorted(ACTIVATIONS)}"
        )
    family["activation"] = ACTIVATIONS[family["activation"]]
    family.setdefault("head_dim", raw.get("head_dim"))
    if family["head_dim"] is None:
        family["head_dim"] = raw["hidden_size"] // raw["num_attention_heads"]
    family.setdefault("tie_embeddings", raw.get("tie_word_embeddings", False))
    family.setdefault("window", raw.get("sliding_window"))
    if not any(family.setdefault("sliding_layers", ())):
        family["sliding_layers"], family["window"] = (), None
    return DecoderConfig(
        model_type=raw["model_type"],
        vocab_size=raw["vocab_size"],
        width=raw["hidden_size"],
        ffn_width=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        **family,
    )


def _llama(raw: dict[str, Any]) -> DecoderConfig:
    return _dense(
        raw, refused=("attention_bias", "mlp_bias"), rope_theta=_theta(raw, "rope_theta", 1e4)
    )


def _qwen3(raw: dict[str, Any]) -> DecoderConfig:
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    sliding = _sliding_layers(raw)
    if not sliding and window is not None:  # older files: the layers from this one on slide
        first = raw.get("max_window_layers", 28)
        sliding = tuple(i >= first for i in range(raw["num_hidden_layers"]))
    return _dense(
        raw,
        refused=("attention_bias",),
        rope_theta=_theta(raw, "rope_theta", 1e4),
        head_dim=raw.get("head_dim", 128),
        qk_norm=True,
        sliding_layers=sliding,
        window=window,
    )


def _gemma3(raw: dict[str, Any]) -> DecoderConfig:
    sliding = _sliding_layers(raw)
    if not sliding:  # older files: every n-th layer attends to everything
        every = raw.get("sliding_window_pattern", 6)
        sliding = tuple((i + 1) % every != 0 for i in range(raw["num_hidden_layers"]))
    return _dense(
        raw,
        refused=(
            "attention_bias",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "use_bidirectional_attention",
        ),
        rope_theta=_theta(raw, "rope_theta", 1e6, "full_attention"),
        local_rope_theta=_theta(raw, "rope_local_base_freq", 1e4, "sliding_attention"),
        activation=raw.get("hidden_activation", "gelu_pytorch_tanh"),
        head_dim=raw.get("head_dim", 256),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        qk_norm=True,
        unit_offset_norm=True,
        sandwich_norms=True,
        embed_scale=math.sqrt(raw["hidden_size"]),
        query_scale=raw.get("query_pre_attn_scalar", 256) ** -0.5,
        sliding_layers=sliding,
        window=raw.get("sliding_window", 4096),
    )


FAMILIES = {"llama": _llama, "qwen3": _qwen3, "gemma3_text": _gemma3}


def config_from_hf(raw: dict[str, Any], *, source: str = "config.json") -> DecoderConfig:
    """Reads the dictionary of a Hugging Face `config.json`.

    Raises:
      UnsupportedModelError: unknown `model_type`, rope type, activation or option, or a missing
        field; the message names `source`, the field and what is allowed.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"{source}: model_type={family!r} is not supported; allowed are {sorted(FAMILIES)}"
        )
    if raw.get("quantization_config"):
        raise UnsupportedModelError(f"{source}: quantization_config is set; allowed is null")
    try:
        for hf_field in SIZES.values():  # first, because other fields are computed from them
            if raw.get(hf_field) is not None:
                _check_size(hf_field, raw[hf_field])
        return FAMILIES[family](raw)
    except KeyError as error:
        raise UnsupportedModelError(f"{source}: field {error} is missing") from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{source}: {error}") from None


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` fields that make transformers build the same decoder.

    Raises:
      UnsupportedModelError: the family cannot express this configuration; the fields are named.
    """
    c = config
    if c.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type={c.model_type!r} is not supported; allowed are {sorted(FAMILIES)}"
        )
    gemma = c.model_type == "gemma3_text"
    full_rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    local_rope = {"rope_type": "default", "rope_theta": c.local_rope_theta}
    raw = {
        "architectures": [ARCHITECTURES[c.model_type]],
        "model_type": c.model_type,
        **{hf_field: getattr(c, field) for field, hf_field in SIZES.items()},
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": False,
        "hidden_activation" if gemma else "hidden_act": HF_ACTIVATIONS[c.activation],
        "rope_parameters": (
            {"full_attention": full_rope, "sliding_attention": local_rope} if gemma else full_rope
        ),
    }
    if c.model_type != "llama":
        kinds = c.sliding_layers or (False,) * c.num_layers
        raw["layer_types"] = [
            "sliding_attention" if slides else "full_attention" for slides in kinds
        ]
        raw["sliding_window"] = c.window
    if c.model_type == "qwen3":
        raw["use_sliding_window"] = c.window is not None
    if gemma:
        if c.window is None:  # transformers builds a window mask even if no layer uses it
            raw["sliding_window"] = 4096
        raw["query_pre_attn_scalar"] = round((c.query_scale or c.head_dim**-0.5) ** -2)
    read_back = config_from_hf(raw)
    lost = [
        f"{field.name}={getattr(c, field.name)!r}"
        for field in dataclasses.fields(c)
        if getattr(c, field.name) != getattr(read_back, field.name)
    ]
    if lost:
        raise UnsupportedModelError(f"a {c.model_type} config.json cannot say {', '.join(lost)}")
    return raw
