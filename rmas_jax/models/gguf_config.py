"""The decoder that a GGUF file describes, by way of the fields of `config.json`.

llama.cpp's converter turns these fields into metadata, tables here turn them back, and
`config_from_hf` checks them. Metadata of the architecture that are in no table may change the model
and are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rmas_jax.host.errors import shown
from rmas_jax.models.architecture import LIMITS
from rmas_jax.models.config import DecoderConfig, config_from_hf
from rmas_jax.models.errors import CheckpointError, UnsupportedModelError
from rmas_jax.models.gguf_header import Header
from rmas_jax.models.gguf_tensors import TensorFile
from rmas_jax.models.hf_config import THETA, WINDOW
from rmas_jax.models.hf_fields import POSITIONS, POSITIVE, Field, number, one_of, read_fields, whole

Raw = dict[str, Any]
EMBEDDING, UNEMBEDDING = "token_embd.weight", "output.weight"
# Divisors [H/2] of the rotary frequencies: llama.cpp's form of the scaling `llama3`.
FREQUENCIES = "rope_freqs.weight"


def _size(field: str) -> Field:
    return whole(1, LIMITS[field])


# Key, behind the name of the architecture -> field of config.json, and the allowed values. Files
# may lack keys with a default; None as a default leaves the field to its family's default.
KEYS = {
    "context_length": ("max_position_embeddings", POSITIONS),
    "embedding_length": ("hidden_size", _size("width")),
    "block_count": ("num_hidden_layers", _size("num_layers")),
    "feed_forward_length": ("intermediate_size", _size("ffn_width")),
    "attention.head_count": ("num_attention_heads", _size("num_heads")),
    "attention.head_count_kv": ("num_key_value_heads", _size("num_kv_heads")(None)),
    "attention.key_length": ("head_dim", _size("head_dim")(None)),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", number(0, 1)),
    "rope.freq_base": ("rope_theta", THETA(1e4)),
}
# Keys that do not become a field of the same value.
OTHER_KEYS = {
    "attention.value_length": _size("head_dim")(None),
    "rope.dimension_count": _size("head_dim")(None),
    "rope.scaling.type": one_of("none", "linear", "yarn")("none"),
    "rope.scaling.factor": POSITIVE(1.0),
    "rope.scaling.original_context_length": POSITIONS(None),
    "rope.scaling.yarn_beta_fast": POSITIVE(None),
    "rope.scaling.yarn_beta_slow": POSITIVE(None),
}
# Those of a scaling -> field of the object `rope_scaling`.
SCALING = {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
HARMLESS = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
GEMMA3_KEYS = {
    "attention.sliding_window": WINDOW(None),
    "attention.sliding_window_pattern": whole(1, 2**31 - 1)(6),
    "rope.freq_base_swa": THETA(1e4),
}
QWEN35_KEYS = {
    "full_attention_interval": whole(1, 2**31 - 1)(4),
    "nextn_predict_layers": whole(0, LIMITS["num_layers"])(0),
    "rope.dimension_sections": Field(lambda value: isinstance(value, list), "a list")(None),
    "ssm.conv_kernel": _size("conv_width"),
    "ssm.group_count": _size("linear_key_heads"),
    "ssm.inner_size": whole(1, LIMITS["linear_value_heads"] * LIMITS["linear_value_dim"]),
    "ssm.state_size": _size("linear_key_dim"),
    "ssm.time_step_rank": _size("linear_value_heads"),
}


class Architecture(NamedTuple):
    """One of llama.cpp's architectures."""

    model_type: str  # of config.json
    more: Callable[[Header, Raw], Raw]  # further fields of config.json, from all keys
    keys: dict[str, Field]  # its own, that `more` reads


def _llama(header: Header, keys: Raw) -> Raw:
    return {
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in header.tensors,
    }


def _qwen(header: Header, keys: Raw) -> Raw:
    return {}


def _gemma3(header: Header, keys: Raw) -> Raw:
    layers, window = keys["block_count"], keys["attention.sliding_window"]
    nth = keys["attention.sliding_window_pattern"]
    slides = [window is not None and (i + 1) % nth != 0 for i in range(layers)]
    # The 27B model's queries have another scale; llama.cpp too knows this model by its layers.
    per_head = keys["embedding_length"] // keys["attention.head_count"]
    scale = per_head if layers == 62 else keys["attention.key_length"] or 256
    return {
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
        "sliding_window": window,
        "query_pre_attn_scalar": scale,
        "rope_local_base_freq": keys["rope.freq_base_swa"],
    }


def _qwen35(header: Header, keys: Raw) -> Raw:
    return {
        "num_hidden_layers": keys["block_count"] - keys["nextn_predict_layers"],
        "full_attention_interval": keys["full_attention_interval"],
        "linear_conv_kernel_dim": keys["ssm.conv_kernel"],
        "linear_num_key_heads": keys["ssm.group_count"],
        "linear_num_value_heads": keys["ssm.time_step_rank"],
        "linear_key_head_dim": keys["ssm.state_size"],
        "linear_value_head_dim": keys["ssm.inner_size"] // keys["ssm.time_step_rank"],
    }


ARCHITECTURES = {
    "llama": Architecture("llama", _llama, {}),  # Mistral too
    "qwen2": Architecture("qwen2", _qwen, {}),
    "qwen3": Architecture("qwen3", _qwen, {}),
    "gemma3": Architecture("gemma3_text", _gemma3, GEMMA3_KEYS),
    "qwen35": Architecture("qwen3_5_text", _qwen35, QWEN35_KEYS),
}


def config_from_gguf(header: Header) -> DecoderConfig:
    """The decoder of a GGUF file; reads no weights.

    Raises:
      UnsupportedModelError: another architecture, a key that is not supported, or a value out of
        range; names the file, the key, its value and the allowed values.
      CheckpointError: the file has no embeddings.
    """
    name = header.metadata.get("general.architecture")
    try:
        if name not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"general.architecture must be one of {', '.join(ARCHITECTURES)}, got {shown(name)}"
            )
        raw = _config_fields(header, name)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{header.path}: {error}") from None
    return config_from_hf(raw, source=f"{header.path}, as config.json")


def _config_fields(header: Header, name: str) -> Raw:
    """The fields of `config.json` for a file with this architecture."""
    architecture, section = ARCHITECTURES[name], header.section(f"{name}.")
    fields = {key: field for key, (_, field) in KEYS.items()} | OTHER_KEYS | architecture.keys
    if unknown := section.keys() - fields.keys() - {*HARMLESS}:
        key = min(unknown)
        raise UnsupportedModelError(
            f"{name}.{key} must be absent (it may change the model and is not supported), got "
            f"{shown(section[key])}"
        )
    if EMBEDDING not in header.tensors:
        raise CheckpointError(f"{header.path}: must have the tensor {EMBEDDING}, got none")
    keys = read_fields(section, fields, where=f"{name}.")
    raw = {field: keys[key] for key, (field, _) in KEYS.items() if keys[key] is not None}
    head_dim = keys["attention.key_length"] or (
        keys["embedding_length"] // keys["attention.head_count"]
    )
    if keys["attention.value_length"] not in (None, head_dim):
        raise UnsupportedModelError(
            f"{name}.attention.value_length must be the size of a head, {head_dim}, got "
            f"{keys['attention.value_length']}"
        )
    return {
        "num_key_value_heads": keys["attention.head_count"],
        **raw,
        "model_type": architecture.model_type,
        "vocab_size": header.tensors[EMBEDDING].shape[0],
        "head_dim": head_dim,
        "partial_rotary_factor": (keys["rope.dimension_count"] or head_dim) / head_dim,
        "tie_word_embeddings": UNEMBEDDING not in header.tensors,
        "rope_scaling": _scaling(header, keys),
        **architecture.more(header, keys),
    }


def _scaling(header: Header, keys: Raw) -> Raw | None:
    """The object `rope_scaling`; None without scaling."""
    if FREQUENCIES in header.tensors:
        with TensorFile(header) as file:
            divisors = file.get_slice(FREQUENCIES)[:].tolist()
        # Of any number of positions: `longrope` alone has a list of divisors in config.json.
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": keys["context_length"],
        }
    if keys["rope.scaling.type"] == "none":
        return None
    more = {field: keys[key] for key, field in SCALING.items() if keys[key] is not None}
    return {"rope_type": keys["rope.scaling.type"], "factor": keys["rope.scaling.factor"], **more}
