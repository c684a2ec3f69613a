"""Decoder configurations from and to the dictionary of a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.activations import ACTIVATIONS
from rmas_jax.models.architecture import LINEAR_SIZES, SIZES, DecoderConfig
from rmas_jax.models.errors import UnsupportedModelError
from rmas_jax.models.families import FAMILIES, TEXT_TOWERS
from rmas_jax.models.hf_config import FIELDS, ROPE_FIELDS, check_inert
from rmas_jax.models.hf_fields import FLAG, OBJECT, read_fields
from rmas_jax.models.rope import UNSCALED, RopeScaling

__all__ = ["DecoderConfig", "UnsupportedModelError", "config_from_hf", "config_to_hf"]

log = logging.getLogger(__name__)


def config_from_hf(raw: dict[str, Any], *, source: str = "config.json") -> DecoderConfig:
    """Reads the dictionary of a Hugging Face `config.json`, as transformers' Auto classes do.

    Reads only the text tower of a checkpoint with vision (`gemma3`, `qwen3_5`). Warns of fields
    without effect whose names suggest one.

    Raises:
      UnsupportedModelError: unknown `model_type`, rope type, activation or option, a missing field,
        or one of another type or out of range; the message names `source`, the field, its value and
        the allowed values.
    """
    family = raw.get("model_type")
    try:
        if not isinstance(family, str) or family not in FAMILIES | TEXT_TOWERS:
            raise UnsupportedModelError(
                f"model_type must be one of {', '.join(sorted(FAMILIES | TEXT_TOWERS))}, got "
                f"{shown(family)}"
            )
        if family in TEXT_TOWERS:
            raw, family, source = _text_tower(raw, family), TEXT_TOWERS[family], _inside(source)
        if family == "mistral" and "layer_types" in raw:  # as in transformers' AutoConfig
            family = "ministral"
        check_inert(raw, FIELDS[family])
        warnings: list[str] = []
        fields = {"model_type": family} | read_fields(raw, FIELDS[family])
        config = FAMILIES[family](fields, warnings.append)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{source}: {error}") from None
    for warning in warnings:
        log.warning("%s: %s", source, warning)
    return config


def _inside(source: str) -> str:
    return f"{source}: text_config"


def _text_tower(raw: dict[str, Any], family: str) -> dict[str, Any]:
    """The fields of the text tower of a checkpoint with vision.

    In transformers, the outer `tie_word_embeddings` counts, except in a Qwen3.5 loaded for text
    alone, where the inner one does.
    """
    check_inert(raw, {})
    read = read_fields(raw, {"text_config": OBJECT, "tie_word_embeddings": FLAG(None)})
    text, tied = read["text_config"], read["tie_word_embeddings"]
    if tied is None and family == "gemma3":
        tied = True
    inner = text.get("tie_word_embeddings", tied)
    if tied is not None and inner != tied:
        raise UnsupportedModelError(
            f"tie_word_embeddings in text_config must be {json.dumps(tied)}, as in the whole "
            f"model, got {shown(inner)}"
        )
    return text if tied is None else text | {"tie_word_embeddings": tied}


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "ouro": "OuroForCausalLM",
}


def _rope_to_hf(scaling: RopeScaling, **more: float | None) -> dict[str, Any]:
    """The rotary object for `families.read_rope`."""
    fields = {
        hf_field: getattr(scaling, field)
        for hf_field, (field, _) in ROPE_FIELDS[scaling.kind].items()
        if field is not None
    }
    lists = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
    return {"rope_type": scaling.kind, **more, **fields, **lists}


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` fields from which transformers builds the same decoder.

    Ouro's are those of the model code published with its checkpoints.

    Raises:
      UnsupportedModelError: the family cannot express this configuration; names the fields.
    """
    c, family = config, config.model_type
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type must be one of {', '.join(sorted(FAMILIES))}, got {family!r}"
        )
    rope = _rope_to_hf(c.rope_scaling, rope_theta=c.rope_theta)
    raw = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **{hf_field: getattr(c, field) for field, hf_field in SIZES.items()},
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": c.out_bias,
        "hidden_act": ACTIVATIONS[c.activation].hf_names[0],
        "rope_parameters": rope,
    }
    for scaling in (c.rope_scaling, c.local_rope_scaling):
        if scaling.kind == "dynamic":
            raw["max_position_embeddings"] = scaling.original_length
    if family == "llama":
        raw["mlp_bias"] = c.ffn_bias
    if family == "mistral":
        raw["sliding_window"] = c.window
    if family in ("ministral", "qwen2", "qwen3", "gemma3_text", "ouro"):
        kinds = c.sliding_layers or (False,) * c.num_layers
        raw["layer_types"] = [
            "sliding_attention" if slides else "full_attention" for slides in kinds
        ]
        raw["sliding_window"] = c.window
        raw["use_sliding_window"] = c.window is not None
    if family in ("ministral", "gemma3_text"):
        del raw["use_sliding_window"]
        if c.window is None:  # transformers builds a window mask even if no layer uses it
            raw["sliding_window"] = 4096
    if family == "gemma3_text":
        raw["hidden_activation"] = raw.pop("hidden_act")
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
        raw["total_ut_steps"] = c.loops
    read_back = config_from_hf(raw)
    lost = [
        f"{field.name}={getattr(c, field.name)!r}"
        for field in dataclasses.fields(c)
        if getattr(c, field.name) != getattr(read_back, field.name)
    ]
    if lost:
        raise UnsupportedModelError(
            f"config must be expressible as a config.json of {family}, got {', '.join(lost)}"
        )
    return raw
