"""The fields of a Hugging Face `config.json`, family by family, as tables.

A table contains the allowed values of a field and its default, as in transformers.
`hf_fields.read_fields` raises for values of another type or out of range, before any use.

Every field of transformers' class of a family is in one of three tables: FIELDS are read, INERT
ones must have a value without effect, HARMLESS ones change no output (a test compares). Other
fields, such as those that training programs add, have no effect in transformers either.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.activations import FROM_HF
from rmas_jax.models.architecture import LIMITS, LINEAR_SIZES, SIZES
from rmas_jax.models.errors import UnsupportedModelError
from rmas_jax.models.hf_fields import (
    FACTORS,
    FLAG,
    OBJECT,
    POSITIONS,
    POSITIVE,
    Field,
    Raw,
    is_number,
    number,
    one_of,
    whole,
)


def check_inert(raw: Raw, read: Mapping[str, Field]) -> None:
    """Refuses fields that affect only other families, unless their value has no effect.

    Args:
      raw: the object.
      read: fields that this family reads; not checked here.
    """
    for name, allowed in INERT.items():
        if name not in raw or name in read:
            continue
        if name == "sliding_window" and raw.get("use_sliding_window") is False:
            continue  # a Llama converted from a Qwen without sliding layers
        if not any(type(raw[name]) is type(v) and raw[name] == v for v in allowed):
            raise UnsupportedModelError(
                f"{name} must be absent or {' or '.join(map(json.dumps, allowed))} (it changes the "
                f"model and is not supported), got {shown(raw[name])}"
            )


# --- Rotary embeddings ----------------------------------------------------------------------------

THETA = POSITIVE
WEIGHT = Field(lambda value: is_number(value) and 0 <= value <= 1e30, "a number of at least 0")
FRACTION = number(0, 1)
WHOLE_HEAD = one_of(1, 1.0)  # families that rotate all of a head

# Fields of `rope_parameters` in transformers, for each kind of rotation (`rope_type`): name ->
# field of `RopeScaling`, or None for an intermediate value, and its allowed values. The default
# None of `original_max_position_embeddings` means `max_position_embeddings`.
ROPE_FIELDS: dict[str, dict[str, tuple[str | None, Field]]] = {
    "default": {},
    "linear": {"factor": ("factor", POSITIVE)},
    "dynamic": {"factor": ("factor", POSITIVE)},
    "llama3": {
        "factor": ("factor", POSITIVE),
        "original_max_position_embeddings": ("original_length", POSITIONS(None)),
        "low_freq_factor": ("low_freq_factor", POSITIVE),
        "high_freq_factor": ("high_freq_factor", POSITIVE),
    },
    "yarn": {
        "factor": ("factor", dataclasses.replace(POSITIVE, null=True)),
        "original_max_position_embeddings": ("original_length", POSITIONS(None)),
        "beta_fast": ("beta_fast", POSITIVE(None, null=True)),
        "beta_slow": ("beta_slow", POSITIVE(None, null=True)),
        "truncate": ("truncate", FLAG(True, null=True)),
        "attention_factor": ("attention_factor", POSITIVE(None, null=True)),
        "mscale": (None, WEIGHT(None, null=True)),
        "mscale_all_dim": (None, WEIGHT(None, null=True)),
    },
    "longrope": {
        "short_factor": ("short_factor", FACTORS),
        "long_factor": ("long_factor", FACTORS),
        "factor": ("factor", POSITIVE(None, null=True)),
        "original_max_position_embeddings": ("original_length", POSITIONS(None)),
        "attention_factor": ("attention_factor", POSITIVE(None, null=True)),
    },
}
ROPE_KIND = one_of(*ROPE_FIELDS)
# Of any kind; `type` is the older name. Text has the same position on all axes of `mrope`.
ROPE_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
ROPE_HARMLESS = ("mrope_section", "mrope_interleaved", "finetuned")
# Fields that transformers ignores, from the authors' code of yarn (also in
# DeepSeek-R1-0528-Qwen3-8B), older files of Phi-3, and Hunyuan.
ROPE_IDLE = ("attn_factor", "extrapolation_factor", "short_mscale", "long_mscale", "alpha")

# --- Families -------------------------------------------------------------------------------------

ACTIVATION = one_of(*FROM_HF)("silu")
WINDOW = whole(1, 2**31 - 1)
# Older names, which transformers renames after it reads a file.
OLD_LAYER_KINDS = {"attention": "full_attention", "mamba": "linear_attention"}


def layer_kinds(*kinds: str) -> Field:
    """A kind for each layer."""
    names = {*kinds, *(old for old, new in OLD_LAYER_KINDS.items() if new in kinds)}
    return Field(
        lambda value: (
            isinstance(value, list)
            and 0 < len(value) <= LIMITS["num_layers"]
            and all(isinstance(kind, str) and kind in names for kind in value)
        ),
        f"a list of {' and '.join(kinds)}, one for each layer",
    )(None, null=True)


WINDOWED = layer_kinds("full_attention", "sliding_attention")


def _sizes(**defaults: Any) -> dict[str, Field]:
    """Sizes common to all families, with defaults where a family's files may omit them."""
    fields = {hf_field: whole(1, LIMITS[field]) for field, hf_field in SIZES.items()}
    return {
        name: field(defaults[name]) if name in defaults else field for name, field in fields.items()
    }


def _common(max_positions: int, *, tied: bool = False, theta: float = 1e4) -> dict[str, Field]:
    """Fields that all families have, besides sizes."""
    return {
        "max_position_embeddings": POSITIONS(max_positions),
        "rms_norm_eps": number(0, 1)(1e-6),
        "hidden_act": ACTIVATION,
        "tie_word_embeddings": FLAG(tied),
        "rope_theta": THETA(theta),
        "rope_scaling": OBJECT(None, null=True),
        "rope_parameters": OBJECT(None, null=True),
        "partial_rotary_factor": WHOLE_HEAD(1.0),
        "original_max_position_embeddings": POSITIONS(None),
    }


_KV_HEADS = whole(1, LIMITS["num_kv_heads"])
_HEAD_DIM = whole(1, LIMITS["head_dim"])
_OWN_HEAD_DIM = {"head_dim": _HEAD_DIM(None, null=True)}  # null: width / heads
_QWEN_WINDOWS = {
    "use_sliding_window": FLAG(False),
    "sliding_window": WINDOW(4096, null=True),
    "max_window_layers": whole(0, 2**31 - 1)(28),
    "layer_types": WINDOWED,
}
_QWEN = (
    _sizes() | _common(32768) | _QWEN_WINDOWS | {"num_key_value_heads": _KV_HEADS(32, null=True)}
)
_MISTRAL = (
    _sizes(num_key_value_heads=8)
    | _OWN_HEAD_DIM
    | _common(131072)
    | {
        "sliding_window": WINDOW(4096, null=True),
        "use_sliding_window": FLAG(True, null=True),  # transformers uses the window alone
    }
)

FIELDS: dict[str, dict[str, Field]] = {
    "llama": _sizes()
    | _OWN_HEAD_DIM
    | _common(2048)
    | {
        "num_key_value_heads": _KV_HEADS(None, null=True),
        "attention_bias": FLAG(False),
        "mlp_bias": FLAG(False),
        "layer_types": layer_kinds("full_attention"),
    },
    "mistral": _MISTRAL,
    "ministral": _MISTRAL | {"layer_types": WINDOWED},
    "qwen2": _QWEN | _OWN_HEAD_DIM,
    "qwen3": _QWEN | {"head_dim": _HEAD_DIM(128), "attention_bias": FLAG(False)},
    "gemma3_text": _sizes(
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
    )
    | {
        name: field
        for name, field in _common(131072, tied=True, theta=1e6).items()
        if name not in ("hidden_act", "original_max_position_embeddings")
    }
    | {
        "hidden_activation": ACTIVATION("gelu_pytorch_tanh"),
        "attention_bias": FLAG(False),
        "query_pre_attn_scalar": POSITIVE(256),
        "sliding_window": WINDOW(4096, null=True),
        "sliding_window_pattern": whole(1, 2**31 - 1)(6),
        "layer_types": WINDOWED,
        "rope_local_base_freq": THETA(1e4),
    },
    "qwen3_5_text": _sizes(
        vocab_size=248320,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=256,
    )
    | _common(32768)
    | {
        "attention_bias": FLAG(False),
        "partial_rotary_factor": FRACTION(0.25),
        "hidden_act": one_of("silu", "swish")("silu"),  # the convolution's too
        "layer_types": layer_kinds("full_attention", "linear_attention"),
        "full_attention_interval": whole(1, 2**31 - 1)(4),
        "attn_output_gate": one_of(True)(True, null=True),
        **{
            hf_field: whole(1, LIMITS[field])(default)
            for (field, hf_field), default in zip(
                LINEAR_SIZES.items(), (16, 32, 128, 128, 4), strict=True
            )
        },
    },
    "ouro": _QWEN
    | _OWN_HEAD_DIM
    | {
        "total_ut_steps": whole(1, LIMITS["loops"])(4),
        "early_exit_threshold": number(-1e30, 1e30)(1.0, null=True),
        "early_exit_step": whole(-(2**31), 2**31 - 1)(None, null=True),
    },
}

# Fields of other families, and options of transformers that no family here has: name -> values
# without effect.
_OFF = (None, False)
_UNIT = (None, 1, 1.0)
INERT: dict[str, tuple[Any, ...]] = {
    # Masks and caches of transformers read these in every family.
    "is_causal": (True,),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "num_kv_shared_layers": (None, 0),
    "per_layer_config": (None, {}),
    "sliding_window": (None,),
    "use_sliding_window": _OFF,
    # Loading options of transformers.
    "add_cross_attention": _OFF,
    "compression_config": (None,),
    "is_encoder_decoder": _OFF,
    "quantization_config": (None,),
    "transformers_weights": (None,),
    # Factors and bounds on embeddings, branches, queries and logits.
    **dict.fromkeys(
        (
            "attention_in_multiplier",
            "attention_out_multiplier",
            "attention_value_scale",
            "embedding_multiplier",
            "embedding_scale",
            "key_multiplier",
            "lm_head_multiplier",
            "logit_scale",
            "logits_scaling",
            "output_multiplier",
            "qk_scale_factor",
            "residual_multiplier",
            "residual_scale",
            "scale_emb",
        ),
        _UNIT,
    ),
    **dict.fromkeys(
        (
            "attention_multiplier",
            "attn_logit_softcapping",
            "clip_qkv",
            "final_logit_softcapping",
            "logits_soft_cap",
            "mlp_gate_softcap",
            "mlp_multipliers",
            "mlp_up_softcap",
            "output_logit_soft_cap",
            "qk_l2_clip_threshold",
            "query_pre_attn_scalar",
            "scale_depth",
            "softmax_scale",
            "swiglu_limit",
        ),
        (None,),
    ),
    "attn_temperature_tuning": (None, False, 0),
    "mup_enabled": _OFF,
    "scale_attn_by_inverse_layer_idx": _OFF,
    "scale_attn_weights": (None, True),
    "scale_embedding": _OFF,
    "use_logn_attn": _OFF,
    # Windows, norms, gates, and the order and number of branches.
    "attention_window_size": (None,),
    "attn_output_gate": _OFF,
    "parallel_attn": _OFF,
    "qk_layernorm": _OFF,
    "sliding_window_size": (None,),
    "total_ut_steps": (None, 1),
    "use_bidirectional_attention": _OFF,
    "use_parallel_residual": _OFF,
    "use_qk_norm": _OFF,
    # Other rotations, or none.
    "alibi": _OFF,
    "layer_rope_theta": (None,),
    "no_rope_layer_interval": (None, 0),
    "no_rope_layers": (None, []),
    "rope_interleave": _OFF,
    "rope_ratio": _UNIT,
    "rope_scaling_layers": (None,),
    "rotary_dim": (None,),
    "rotary_emb_fraction": _UNIT,
    "rotary_pct": _UNIT,
    "use_dynamic_ntk": _OFF,
}
# Fields of transformers' classes without effect on outputs: name -> why.
HARMLESS: dict[str, str] = {
    "transformers_version": "writer of the file",
    "architectures": "transformers uses model_type",
    "dtype": "of stored weights, whose files contain it",
    "output_hidden_states": "further results of a call",
    "return_dict": "type of a call's result",
    "use_cache": "whether keys and values are kept, not their values",
    "chunk_size_feed_forward": "no family here splits its feed-forward",
    "id2label": "of classifiers",
    "label2id": "of classifiers",
    "problem_type": "of classifiers",
    "initializer_range": "of fresh weights",
    "attention_dropout": "of training; agents are frozen",
    "pretraining_tp": "transformers 5 does not read it",
    "_attn_implementation": "kernel of attention",
    "number_of_conv_states": "number of buffers in a cache",
    "pad_token_id": "of the tokenizer, as are the next two",
    "bos_token_id": "",
    "eos_token_id": "",
}
