"""Random configurations of every family, as the fields of a `config.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

POSITIONS = 24  # at least as many as any test reads, so that dynamic and longrope stay short
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "swish")
FAMILIES = (
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "qwen3_5_text",
    "ouro",
)
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
ABSENT: Any = object()


def draw_config(seed: int) -> dict[str, Any]:
    """The fields of one tiny model; the family goes round with the seed."""
    rng = np.random.default_rng(seed)
    family = FAMILIES[seed % len(FAMILIES)]

    def pick(*values):
        return values[rng.integers(len(values))]

    layers = pick(2, 3, 4)
    width, heads = pick((32, 4), (32, 2), (48, 3), (48, 4), (32, 8))
    head_dim = pick(ABSENT, 8, 12, 20)
    if family in ("ministral", "qwen3", "gemma3_text", "qwen3_5_text"):
        head_dim = pick(8, 12, 20) if family != "qwen3_5_text" else pick(8, 16, 24)
    raw = {
        "model_type": family,
        "vocab_size": pick(50, 61, 64, 128),  # tests use the first 50: the rest is padding
        "hidden_size": width,
        "intermediate_size": pick(24, 40),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": pick(*(n for n in range(1, heads + 1) if heads % n == 0)),
        "head_dim": head_dim,
        "rms_norm_eps": pick(ABSENT, 1e-6, 1e-5, 1e-3),
        "tie_word_embeddings": pick(ABSENT, True, False),
        "max_position_embeddings": pick(ABSENT, POSITIONS, 64),
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    act = pick(ABSENT, *ACTIVATIONS)
    if family == "gemma3_text":
        raw["hidden_activation"] = act
    elif family != "qwen3_5_text":
        raw["hidden_act"] = act
    raw |= _layers(family, layers, pick)
    if family in ("llama", "qwen3", "gemma3_text", "qwen3_5_text"):
        raw["attention_bias"] = pick(ABSENT, False, True)
    if family == "llama":
        raw["mlp_bias"] = pick(ABSENT, False, True)
    if family == "gemma3_text":
        raw["query_pre_attn_scalar"] = pick(8, 20, 64)
    if family == "ouro":
        raw["total_ut_steps"] = pick(1, 2, 3)
    size = width // heads if head_dim is ABSENT else head_dim
    raw |= _rotation(family, size, rng, pick)
    return {name: value for name, value in raw.items() if value is not ABSENT}


def _layers(family, layers, pick) -> dict[str, Any]:
    """Windows and kinds of layers, said in one of the ways that files know."""
    kinds = [pick(FULL, SLIDING) for _ in range(layers)]
    window = pick(2, 3, 5)
    if family == "mistral":
        return {"sliding_window": pick(ABSENT, None, window)}
    if family == "ministral":
        return pick(
            # transformers takes a Mistral with `layer_types` for a Ministral.
            {"model_type": "mistral", "layer_types": kinds, "sliding_window": window},
            {"layer_types": kinds, "sliding_window": window},
            {"layer_types": None, "sliding_window": window},
            {"layer_types": ["attention"] * layers, "sliding_window": window},
        )
    if family in ("qwen2", "qwen3"):
        return pick(
            {},
            {"sliding_window": window, "max_window_layers": 1},
            {"use_sliding_window": False, "sliding_window": window, "max_window_layers": 0},
            {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1},
            {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds},
            {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
            {"layer_types": [FULL] * layers},
        )
    if family == "gemma3_text":
        return {"sliding_window": window} | pick(
            {}, {"sliding_window_pattern": pick(1, 2, 3)}, {"layer_types": kinds}
        )
    if family == "qwen3_5_text":
        mixed = [pick(FULL, LINEAR) for _ in range(layers)]
        mixed[pick(*range(layers))] = FULL
        keys = pick(1, 2)
        sizes = {
            "linear_num_key_heads": keys,
            "linear_num_value_heads": keys * pick(1, 2),
            "linear_key_head_dim": pick(4, 6),
            "linear_value_head_dim": pick(5, 8),
            "linear_conv_kernel_dim": pick(2, 4),
        }
        return sizes | pick({"full_attention_interval": 2}, {"layer_types": mixed})
    return {}


def _rope(size: int, rng, pick) -> dict[str, Any]:
    """Rotary fields of one kind of rotation, without the base, for `size` rotated dimensions."""
    original = pick(ABSENT, 8, 16)
    factor = pick(1.5, 4.0, 8)
    halves = [[round(float(x), 2) for x in rng.uniform(1, 4, size // 2)] for _ in range(2)]
    rope = pick(
        {},
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": factor},
        {"rope_type": "dynamic", "factor": factor},
        {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": pick(1.0, 2),
            "high_freq_factor": pick(3.0, 4),
            "original_max_position_embeddings": original,
        },
        {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "beta_fast": pick(ABSENT, None, 4.0),
            "beta_slow": pick(ABSENT, 0.5),
            "truncate": pick(ABSENT, True, False, None),
            "attention_factor": pick(ABSENT, None, 1.25),
            "mscale": pick(ABSENT, 1.5),
            "mscale_all_dim": pick(ABSENT, 0.5),
        },
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8},
        {
            "rope_type": "longrope",
            "short_factor": halves[0],
            "long_factor": halves[1],
            "factor": pick(ABSENT, None, 4.0),
            "original_max_position_embeddings": POSITIONS,
            "attention_factor": pick(ABSENT, 1.25),
        },
    )
    return {name: value for name, value in rope.items() if value is not ABSENT}


def _rotation(family: str, head_dim: int, rng, pick) -> dict[str, Any]:
    """The rotary fields of a whole file, in the way of older or newer files."""
    theta = pick(ABSENT, 10.0, 50.0, 1000.0, 1e6)
    own = {} if theta is ABSENT else {"rope_theta": theta}
    if family == "gemma3_text":
        full, local = _rope(head_dim, rng, pick), _rope(head_dim, rng, pick)
        return pick(
            own | {"rope_local_base_freq": 20.0, "rope_scaling": full or None},
            {
                "rope_parameters": {
                    FULL: {"rope_type": "default"} | full | own,
                    SLIDING: {"rope_type": "default", "rope_theta": 20.0} | local,
                }
            },
            own,
        )
    part = {}
    if family == "qwen3_5_text":
        part = pick({}, {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0})
    size = int(head_dim * part.get("partial_rotary_factor", 0.25 if family[-5:] == "_text" else 1))
    rope = _rope(size, rng, pick)
    outer = pick({}, {"original_max_position_embeddings": POSITIONS})
    return outer | pick(
        own | part | {"rope_scaling": rope or None},
        own | part | ({"rope_parameters": rope} if rope else {}),
        {"rope_parameters": {"rope_type": "default"} | rope | own | part},
    )
