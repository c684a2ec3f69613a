"""Model families: each reads its `config.json` into a `DecoderConfig`.

Fields that a file leaves out get the defaults of transformers. Options that are not ported are
refused by name.
"""

from __future__ import annotations

import math
from typing import Any

from rmas_jax.models.architecture import LINEAR_SIZES, DecoderConfig, UnsupportedModelError
from rmas_jax.models.rope import KINDS, RopeScaling, yarn_attention_factor

Raw = dict[str, Any]  # the dictionary of a config.json

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
LAYER_KINDS = ("full_attention", "sliding_attention", "linear_attention")

# Field of `RopeScaling` -> field of a file, for each kind: those it must have, those it may have.
ROPE_FIELDS = {
    "default": ({}, {}),
    "linear": ({"factor": "factor"}, {}),
    "llama3": (
        {
            "factor": "factor",
            "original_length": "original_max_position_embeddings",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        },
        {},
    ),
    "yarn": (
        {"factor": "factor", "original_length": "original_max_position_embeddings"},
        {
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "truncate": "truncate",
            "attention_factor": "attention_factor",
        },
    ),
}


def rope_scaling(rope: Raw) -> RopeScaling:
    """The scaling that `rope_parameters` or an older file's `rope_scaling` asks for."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in KINDS:
        raise UnsupportedModelError(f"rope_type={kind!r}: allowed are {', '.join(KINDS)}")
    required, optional = ROPE_FIELDS[kind]
    fields = {}
    for field, hf_field in required.items():
        if rope.get(hf_field) is None:
            raise UnsupportedModelError(f"rope_type={kind!r}: field {hf_field!r} is missing")
        fields[field] = rope[hf_field]
    fields |= {
        field: rope[hf_field]
        for field, hf_field in optional.items()
        if rope.get(hf_field) is not None
    }
    for field, value in fields.items():
        if not isinstance(value, int | float):
            raise UnsupportedModelError(f"rope_type={kind!r}: {field}={value!r} is not a number")
    if kind == "yarn" and "attention_factor" not in fields:
        fields["attention_factor"] = yarn_attention_factor(
            fields["factor"], rope.get("mscale"), rope.get("mscale_all_dim")
        )
    try:
        return RopeScaling(kind=kind, **fields)
    except ValueError as error:
        raise UnsupportedModelError(str(error)) from None


def _rope(raw: Raw, *, theta: float = 1e4, fraction: float = 1.0, partial: bool = False) -> Raw:
    """The rotary fields of a family with one kind of rotation.

    `partial` says whether the family can rotate a part of a head, `fraction` its default part.
    """
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    found = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or fraction
    if not partial and found != 1.0:
        raise UnsupportedModelError(f"partial_rotary_factor={found!r}: allowed is 1.0")
    return {
        "rope_theta": float(rope.get("rope_theta") or raw.get("rope_theta") or theta),
        "rope_scaling": rope_scaling(rope),
        "rotary_fraction": float(found),
    }


def _rope_of_gemma3(raw: Raw) -> Raw:
    """The rotary fields of Gemma-3: full and sliding layers each have their own.

    An older file's `rope_scaling` is that of the full layers.
    """
    rope = raw.get("rope_parameters") or {}
    full = (rope.get("full_attention") or {}) | (raw.get("rope_scaling") or {})
    local = rope.get("sliding_attention") or {}
    return {
        "rope_theta": float(full.get("rope_theta") or raw.get("rope_theta") or 1e6),
        "rope_scaling": rope_scaling(full),
        "local_rope_theta": float(
            local.get("rope_theta") or raw.get("rope_local_base_freq") or 1e4
        ),
        "local_rope_scaling": rope_scaling(local),
    }


def _is_kind(raw: Raw, kind: str, allowed: tuple[str, ...] = LAYER_KINDS[:2]) -> tuple[bool, ...]:
    """Which layers `layer_types` says are of a kind (empty where the file has none)."""
    kinds = raw.get("layer_types") or ()
    if kinds and len(kinds) != raw["num_hidden_layers"]:
        raise UnsupportedModelError(
            f"layer_types names {len(kinds)} layers, "
            f"num_hidden_layers is {raw['num_hidden_layers']}"
        )
    for found in kinds:
        if found not in allowed:
            raise UnsupportedModelError(f"layer type {found!r}: allowed are {sorted(allowed)}")
    return tuple(found == kind for found in kinds)


def _windows_of_qwen(raw: Raw) -> Raw:
    """The window fields of Qwen: layers from `max_window_layers` on slide, if any do."""
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    sliding = _is_kind(raw, "sliding_attention")
    if not sliding and window is not None:  # older files
        first = raw.get("max_window_layers", 28)
        sliding = tuple(i >= first for i in range(raw["num_hidden_layers"]))
    return {"sliding_layers": sliding, "window": window}


def _decoder(raw: Raw, *, refused: tuple[str, ...] = (), **family: Any) -> DecoderConfig:
    """Fields that all families share.

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


def _llama(raw: Raw) -> DecoderConfig:
    return _decoder(raw, refused=("attention_bias", "mlp_bias"), **_rope(raw))


def _mistral(raw: Raw) -> DecoderConfig:
    window = raw.get("sliding_window", 4096)
    sliding = (window is not None,) * raw["num_hidden_layers"]
    return _decoder(raw, sliding_layers=sliding, window=window, **_rope(raw))


def _qwen2(raw: Raw) -> DecoderConfig:
    return _decoder(raw, qkv_bias=True, **_windows_of_qwen(raw), **_rope(raw))


def _qwen3(raw: Raw) -> DecoderConfig:
    return _decoder(
        raw,
        refused=("attention_bias",),
        head_dim=raw.get("head_dim", 128),
        qk_norm=True,
        **_windows_of_qwen(raw),
        **_rope(raw),
    )


def _gemma3(raw: Raw) -> DecoderConfig:
    heads = raw.get("num_attention_heads", 8)
    raw = {  # published files leave these out where they are the defaults
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": heads,
        "num_key_value_heads": min(4, heads),  # transformers' 4 needs four heads or more
    } | raw
    sliding = _is_kind(raw, "sliding_attention")
    if not sliding:  # older files: every n-th layer attends to everything
        every = raw.get("sliding_window_pattern", 6)
        sliding = tuple((i + 1) % every != 0 for i in range(raw["num_hidden_layers"]))
    return _decoder(
        raw,
        refused=(
            "attention_bias",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "use_bidirectional_attention",
        ),
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
        **_rope_of_gemma3(raw),
    )


def _qwen3_5(raw: Raw) -> DecoderConfig:
    raw = {
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    } | raw
    linear = _is_kind(raw, "linear_attention", ("full_attention", "linear_attention"))
    if not linear:
        every = raw.get("full_attention_interval", 4)
        linear = tuple((i + 1) % every != 0 for i in range(raw["num_hidden_layers"]))
    if ACTIVATIONS.get(raw.get("hidden_act", "silu")) != "silu":  # the convolution's too
        raise UnsupportedModelError(f"hidden_act={raw['hidden_act']!r}: allowed is 'silu'")
    if raw.get("attn_output_gate") is False:
        raise UnsupportedModelError("attn_output_gate=False: allowed is true")
    sizes = {field: raw[hf_field] for field, hf_field in LINEAR_SIZES.items()}
    return _decoder(
        raw,
        refused=("attention_bias",),
        head_dim=raw.get("head_dim", 256),
        qk_norm=True,
        unit_offset_norm=True,
        gated_attention=True,
        linear_layers=linear if any(linear) else (),
        **(sizes if any(linear) else {}),
        **_rope(raw, fraction=0.25, partial=True),
    )


def _ouro(raw: Raw) -> DecoderConfig:
    """Ouro, the looped decoder (arXiv 2510.25741): all passes run, whatever the exit gate says.

    No release of transformers has this family. Fields, weight names and order of operations follow
    the model code that is published with the checkpoints, as read in a public copy
    (LoopedLMs/ouro_rl on GitHub); no published checkpoint has been loaded here.
    """
    passes = raw.get("total_ut_steps", 4)
    threshold, step = raw.get("early_exit_threshold"), raw.get("early_exit_step")
    if threshold is not None and threshold < 1:
        raise UnsupportedModelError(f"early_exit_threshold={threshold!r}: allowed is 1.0")
    if step is not None and 0 <= step < passes - 1:
        raise UnsupportedModelError(f"early_exit_step={step!r}: allowed is null (the last pass)")
    return _decoder(raw, sandwich_norms=True, passes=passes, **_windows_of_qwen(raw), **_rope(raw))


FAMILIES = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
    "qwen3_5_text": _qwen3_5,
    "ouro": _ouro,
}

# Checkpoints with vision: their text tower, of this family, stands in `text_config`.
TEXT_TOWERS = {"gemma3": "gemma3_text", "qwen3_5": "qwen3_5_text"}
