"""Decoder configurations from and to the dictionary of a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmas_jax.models.architecture import (
    LINEAR_SIZES,
    SIZES,
    DecoderConfig,
    UnsupportedModelError,
    check_size,
)
from rmas_jax.models.families import FAMILIES, ROPE_FIELDS, TEXT_TOWERS
from rmas_jax.models.rope import UNSCALED, RopeScaling

__all__ = ["DecoderConfig", "UnsupportedModelError", "config_from_hf", "config_to_hf"]


def config_from_hf(raw: dict[str, Any], *, source: str = "config.json") -> DecoderConfig:
    """Reads the dictionary of a Hugging Face `config.json`.

    Of a checkpoint with vision (`gemma3`, `qwen3_5`) only the text tower is described.

    Raises:
      UnsupportedModelError: unknown `model_type`, rope type, activation or option, or a missing
        field; the message names `source`, the field and what is allowed.
    """
    family = raw.get("model_type")
    if raw.get("quantization_config"):
        raise UnsupportedModelError(f"{source}: quantization_config is set; allowed is null")
    if family in TEXT_TOWERS:
        text = raw.get("text_config")
        if not isinstance(text, dict):
            raise UnsupportedModelError(f"{source}: text_config={text!r}: allowed is an object")
        ties = {key: raw[key] for key in ("tie_word_embeddings",) if raw.get(key) is not None}
        text = text | ties | {"model_type": TEXT_TOWERS[family]}
        return config_from_hf(text, source=f"{source}: text_config")
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"{source}: model_type={family!r} is not supported; "
            f"allowed are {sorted(FAMILIES | TEXT_TOWERS)}"
        )
    try:
        for hf_field in SIZES.values():  # first, because other fields are computed from them
            if raw.get(hf_field) is not None:
                check_size(hf_field, raw[hf_field])
        return FAMILIES[family](raw)
    except KeyError as error:
        raise UnsupportedModelError(f"{source}: field {error} is missing") from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{source}: {error}") from None


HF_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "ouro": "OuroForCausalLM",
}


def _rope_to_hf(scaling: RopeScaling, **more: float) -> dict[str, Any]:
    """The dictionary that `rope_scaling` reads back."""
    required, optional = ROPE_FIELDS[scaling.kind]
    fields = {
        hf_field: getattr(scaling, field) for field, hf_field in (required | optional).items()
    }
    return {"rope_type": scaling.kind, **more, **fields}


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` fields that make transformers build the same decoder.

    Ouro's are those of the model code that is published with its checkpoints.

    Raises:
      UnsupportedModelError: the family cannot express this configuration; the fields are named.
    """
    c, family = config, config.model_type
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type={family!r} is not supported; allowed are {sorted(FAMILIES)}"
        )
    rope = _rope_to_hf(c.rope_scaling, rope_theta=c.rope_theta)
    raw = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **{hf_field: getattr(c, field) for field, hf_field in SIZES.items()},
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": False,
        "hidden_act": HF_ACTIVATIONS[c.activation],
        "rope_parameters": rope,
    }
    if family == "mistral":
        raw["sliding_window"] = c.window
    if family in ("qwen2", "qwen3", "gemma3_text", "ouro"):
        kinds = c.sliding_layers or (False,) * c.num_layers
        raw["layer_types"] = [
            "sliding_attention" if slides else "full_attention" for slides in kinds
        ]
        raw["sliding_window"] = c.window
        raw["use_sliding_window"] = c.window is not None
    if family == "gemma3_text":
        del raw["use_sliding_window"]
        raw["hidden_activation"] = raw.pop("hidden_act")
        if c.window is None:  # transformers builds a window mask even if no layer uses it
            raw["sliding_window"] = 4096
        raw["query_pre_attn_scalar"] = round((c.query_scale or c.head_dim**-0.5) ** -2)
        local = _rope_to_hf(c.local_rope_scaling, rope_theta=c.local_rope_theta)
        raw["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if family == "qwen3_5_text":
        rope["partial_rotary_factor"] = c.rotary_fraction
        kinds = c.linear_layers or (False,) * c.num_layers
        raw["layer_types"] = [
            "linear_attention" if linear else "full_attention" for linear in kinds
        ]
        if any(c.linear_layers):
            raw |= {hf_field: getattr(c, field) for field, hf_field in LINEAR_SIZES.items()}
    if family == "ouro":  # written for transformers 4
        del raw["rope_parameters"]
        raw["rope_theta"] = c.rope_theta
        if c.rope_scaling != UNSCALED:
            raw["rope_scaling"] = _rope_to_hf(c.rope_scaling)
        raw["total_ut_steps"] = c.passes
    read_back = config_from_hf(raw)
    lost = [
        f"{field.name}={getattr(c, field.name)!r}"
        for field in dataclasses.fields(c)
        if getattr(c, field.name) != getattr(read_back, field.name)
    ]
    if lost:
        raise UnsupportedModelError(f"a {family} config.json cannot say {', '.join(lost)}")
    return raw
