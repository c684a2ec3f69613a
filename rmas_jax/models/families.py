"""Model families: each makes a `DecoderConfig` from the fields of its `config.json`.

`rmas_jax.models.hf_config` gives the fields types and transformers' defaults; this module checks
that they fit together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.activations import FROM_HF
from rmas_jax.models.architecture import LINEAR_SIZES, DecoderConfig
from rmas_jax.models.errors import UnsupportedModelError
from rmas_jax.models.hf_config import (
    FRACTION,
    OLD_LAYER_KINDS,
    ROPE_COMMON,
    ROPE_FIELDS,
    ROPE_HARMLESS,
    ROPE_IDLE,
    ROPE_KIND,
    THETA,
    WHOLE_HEAD,
)
from rmas_jax.models.hf_fields import OBJECT, Field, read_fields
from rmas_jax.models.rope import RopeScaling, longrope_attention_factor, yarn_attention_factor

Fields = dict[str, Any]  # field of a config.json -> its value, or its default; and model_type
Warn = Callable[[str], None]  # reports a warning about a usable file

# --- Rotary embeddings ----------------------------------------------------------------------------


def read_rope(
    rope: dict[str, Any], where: str, warn: Warn, *, theta: float, fraction: Field, positions: int
) -> tuple[float, RopeScaling, float]:
    """Base, scaling and rotated share of a head, from one object of rotary fields.

    Args:
      rope: the object, `rope_parameters` or an older file's `rope_scaling`.
      where: its name, for messages.
      warn: reports fields without effect.
      theta: default of the base.
      fraction: allowed values of `partial_rotary_factor`, with its default.
      positions: `max_position_embeddings`.
    """
    where = f"{where}: "
    older = read_fields(rope, {"type": ROPE_KIND("default")}, where=where)["type"]
    kind = read_fields(rope, {"rope_type": ROPE_KIND(older)}, where=where)["rope_type"]
    where = f"{where}rope_type={kind!r}: "
    table = ROPE_FIELDS[kind]
    known = {name for fields in ROPE_FIELDS.values() for name in fields}
    known |= {*ROPE_HARMLESS, *ROPE_IDLE}
    unknown = rope.keys() - known - {*ROPE_COMMON}
    if unknown:
        raise UnsupportedModelError(
            f"{where}a field must be one of {', '.join(sorted(known | {*ROPE_COMMON}))}, got "
            f"{shown(min(unknown))}"
        )
    idle = sorted(rope.keys() & known - table.keys() - {*ROPE_HARMLESS})
    if idle:  # transformers warns too
        warn(f"{where}does not use {', '.join(idle)}")
    common = {"rope_theta": THETA(theta), "partial_rotary_factor": fraction}
    values = read_fields(
        rope, common | {name: field for name, (_, field) in table.items()}, where=where
    )
    theta = float(values.pop("rope_theta"))
    part = float(values.pop("partial_rotary_factor"))
    if kind == "yarn" and theta <= 1:
        raise UnsupportedModelError(f"{where}rope_theta must be above 1, got {theta!r}")
    scaling = _scaling(kind, values, positions)
    return theta, scaling, part


def _scaling(kind: str, values: Fields, positions: int) -> RopeScaling:
    """The scaling from typed fields of ROPE_FIELDS."""
    if kind == "dynamic":  # its frequencies differ for longer texts
        return RopeScaling(kind, values["factor"], original_length=positions)
    original = values.get("original_max_position_embeddings", 0)
    if original is None:
        original = values["original_max_position_embeddings"] = positions
    if "factor" in values and values["factor"] is None:
        values["factor"] = positions / original
    if "truncate" in values:
        values["truncate"] = bool(values["truncate"])  # null is false in transformers
    if "attention_factor" in values and values["attention_factor"] is None:
        if kind == "yarn":
            scales = values["mscale"], values["mscale_all_dim"]
            values["attention_factor"] = yarn_attention_factor(values["factor"], *scales)
        else:
            values["attention_factor"] = longrope_attention_factor(values["factor"], original)
    fields = {field: values[name] for name, (field, _) in ROPE_FIELDS[kind].items() if field}
    for field, value in list(fields.items()):
        if value is None:  # the default, as in transformers
            del fields[field]
        elif isinstance(value, list):
            fields[field] = tuple(value)
    return RopeScaling(kind, **fields)


def _rope(f: Fields, warn: Warn, *, fraction: Field = WHOLE_HEAD) -> Fields:
    """The rotary fields of a family with one kind of rotation.

    In older files, `rope_scaling` replaces all of `rope_parameters`.
    """
    where = "rope_scaling" if f["rope_scaling"] else "rope_parameters"
    rope = f[where] or {}
    if f["original_max_position_embeddings"] is not None:  # overrides the object's
        own = {"original_max_position_embeddings": f["original_max_position_embeddings"]}
        kind = rope.get("rope_type", rope.get("type", "default"))
        takes = isinstance(kind, str) and own.keys() & ROPE_FIELDS.get(kind, {}).keys()
        rope = rope | (own if takes else {})
    theta, scaling, part = read_rope(
        rope,
        where,
        warn,
        theta=f["rope_theta"],
        fraction=fraction(f["partial_rotary_factor"]),
        positions=f["max_position_embeddings"],
    )
    if f["rope_scaling"] and f["rope_parameters"]:
        lost = {
            name: value
            for name, value in f["rope_parameters"].items()
            if name in ("rope_theta", "partial_rotary_factor") and name not in f["rope_scaling"]
        }
        now = {"rope_theta": theta, "partial_rotary_factor": part}
        for name, value in lost.items():
            if value != now[name]:
                warn(
                    "rope_scaling replaces rope_parameters, as in transformers: "
                    f"{name} is {now[name]}, not {shown(value)}; write it into rope_scaling to "
                    "keep it"
                )
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_fraction": part}


def _rope_of_gemma3(f: Fields, warn: Warn) -> Fields:
    """The rotary fields of Gemma-3: full and sliding layers each have their own.

    In older files, `rope_scaling` is for the full layers. transformers reads `truncate` in the
    outer object, not in these two.
    """
    parts = {
        "full_attention": OBJECT(None, null=True),
        "sliding_attention": OBJECT(None, null=True),
    }
    outer = f["rope_parameters"] or {}
    unknown = outer.keys() - parts.keys() - {"truncate"}
    if unknown:
        raise UnsupportedModelError(
            f"rope_parameters must have {' and '.join(parts)}, each with rotary fields, got "
            f"{shown(min(unknown))}"
        )
    ropes = read_fields(outer, parts, where="rope_parameters: ")
    truncate = {name: value for name, value in outer.items() if name == "truncate"}

    def read(kind: str, rope: dict[str, Any], theta: float) -> tuple[float, RopeScaling, float]:
        kept = {name: value for name, value in rope.items() if name != "truncate"}
        if len(kept) < len(rope):
            warn(f"rope_parameters: truncate has no effect inside {kind}, as in transformers")
        return read_rope(
            kept | (truncate if rope.get("rope_type", rope.get("type")) == "yarn" else {}),
            f"rope_parameters: {kind}",
            warn,
            theta=theta,
            fraction=WHOLE_HEAD(f["partial_rotary_factor"]),
            positions=f["max_position_embeddings"],
        )

    full = (ropes["full_attention"] or {}) | (f["rope_scaling"] or {})
    theta, scaling, _ = read("full_attention", full, f["rope_theta"])
    local = ropes["sliding_attention"] or {}
    local_theta, local_scaling, _ = read("sliding_attention", local, f["rope_local_base_freq"])
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local_theta,
        "local_rope_scaling": local_scaling,
    }


# --- Layers ---------------------------------------------------------------------------------------


def _is_kind(f: Fields, kind: str) -> tuple[bool, ...]:
    """The layers of a kind according to `layer_types`; empty without this field."""
    kinds = f.get("layer_types") or ()
    if kinds and len(kinds) != f["num_hidden_layers"]:
        raise UnsupportedModelError(
            f"layer_types must have num_hidden_layers={f['num_hidden_layers']} entries, got "
            f"{len(kinds)}"
        )
    return tuple(OLD_LAYER_KINDS.get(found, found) == kind for found in kinds)


def _all_but_every(f: Fields, nth: int) -> tuple[bool, ...]:
    """All layers except every n-th, as in older files with one number."""
    return tuple((i + 1) % nth != 0 for i in range(f["num_hidden_layers"]))


def _windows_of_qwen(f: Fields) -> Fields:
    """The window fields of Qwen: if sliding is on, layers from `max_window_layers` on slide."""
    window = f["sliding_window"] if f["use_sliding_window"] else None
    sliding = _is_kind(f, "sliding_attention")
    if not sliding and window is not None:  # older files
        sliding = tuple(i >= f["max_window_layers"] for i in range(f["num_hidden_layers"]))
    return {"sliding_layers": sliding, "window": window}


def _windows_of_mistral(f: Fields) -> Fields:
    """The window fields of Mistral: with a window, all layers slide, or those in `layer_types`."""
    window = f["sliding_window"]
    sliding = _is_kind(f, "sliding_attention") or (window is not None,) * f["num_hidden_layers"]
    return {"sliding_layers": sliding, "window": window}


# --- Families -------------------------------------------------------------------------------------


def _decoder(f: Fields, **more: Any) -> DecoderConfig:
    """A configuration from the fields that all families have, and `more`."""
    activation = f["hidden_activation"] if "hidden_activation" in f else f["hidden_act"]
    heads = f["num_attention_heads"]
    bias = f.get("attention_bias", False)
    if not any(more.setdefault("sliding_layers", ())):
        more["sliding_layers"], more["window"] = (), None
    return DecoderConfig(
        model_type=f["model_type"],
        vocab_size=f["vocab_size"],
        width=f["hidden_size"],
        ffn_width=f["intermediate_size"],
        num_layers=f["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads if f["num_key_value_heads"] is None else f["num_key_value_heads"],
        head_dim=f["hidden_size"] // heads if f["head_dim"] is None else f["head_dim"],
        norm_eps=f["rms_norm_eps"],
        activation=FROM_HF[activation],
        tie_embeddings=f["tie_word_embeddings"],
        out_bias=bias,
        **{"qkv_bias": bias} | more,
    )


def _llama(f: Fields, warn: Warn) -> DecoderConfig:
    _is_kind(f, "full_attention")
    return _decoder(f, ffn_bias=f["mlp_bias"], **_rope(f, warn))


def _mistral(f: Fields, warn: Warn) -> DecoderConfig:
    return _decoder(f, **_windows_of_mistral(f), **_rope(f, warn))


def _qwen2(f: Fields, warn: Warn) -> DecoderConfig:
    return _decoder(f, qkv_bias=True, **_windows_of_qwen(f), **_rope(f, warn))


def _qwen3(f: Fields, warn: Warn) -> DecoderConfig:
    return _decoder(f, qk_norm=True, **_windows_of_qwen(f), **_rope(f, warn))


def _gemma3(f: Fields, warn: Warn) -> DecoderConfig:
    sliding = _is_kind(f, "sliding_attention")
    return _decoder(
        f,
        qk_norm=True,
        unit_offset_norm=True,
        sandwich_norms=True,
        embed_scale=math.sqrt(f["hidden_size"]),
        query_scale=f["query_pre_attn_scalar"] ** -0.5,
        sliding_layers=sliding or _all_but_every(f, f["sliding_window_pattern"]),
        window=f["sliding_window"],
        **_rope_of_gemma3(f, warn),
    )


def _qwen3_5(f: Fields, warn: Warn) -> DecoderConfig:
    linear = _is_kind(f, "linear_attention") or _all_but_every(f, f["full_attention_interval"])
    sizes = {field: f[hf_field] for field, hf_field in LINEAR_SIZES.items()}
    return _decoder(
        f,
        qk_norm=True,
        unit_offset_norm=True,
        gated_attention=True,
        linear_layers=linear if any(linear) else (),
        **(sizes if any(linear) else {}),
        **_rope(f, warn, fraction=FRACTION),
    )


def _ouro(f: Fields, warn: Warn) -> DecoderConfig:
    """Ouro, the looped decoder (arXiv 2510.25741): all loops run, independently of the exit gate.

    No release of transformers has this family. Fields, weight names and order of operations follow
    the model code published with the checkpoints, in a public copy (LoopedLMs/ouro_rl on GitHub);
    no published checkpoint has been loaded here.
    """
    loops = f["total_ut_steps"]
    threshold, step = f["early_exit_threshold"], f["early_exit_step"]
    if threshold is not None and threshold < 1:
        raise UnsupportedModelError(f"early_exit_threshold must be at least 1, got {threshold!r}")
    if step is not None and 0 <= step < loops - 1:
        raise UnsupportedModelError(f"early_exit_step must be null (the last loop), got {step!r}")
    return _decoder(f, sandwich_norms=True, loops=loops, **_windows_of_qwen(f), **_rope(f, warn))


FAMILIES = {
    "llama": _llama,
    "mistral": _mistral,
    "ministral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
    "qwen3_5_text": _qwen3_5,
    "ouro": _ouro,
}

# Model types with vision -> family of their text tower, described by `text_config`.
TEXT_TOWERS = {"gemma3": "gemma3_text", "qwen3_5": "qwen3_5_text"}
