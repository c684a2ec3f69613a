"""Types, ranges and sizes of the fields of `config.json`: one message, or a decoder."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from models.test_hf_config import SIZES, TOWERS, valid

from rmas_jax.host.errors import MESSAGE_LIMIT, shown
from rmas_jax.models import UnsupportedModelError, config_from_hf
from rmas_jax.models.hf_config import FIELDS, INERT


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"model_type": ["llama"]}, r"model_type must be one of .*, got \['llama'\]"),
        ("llama", {"rope_parameters": []}, r"rope_parameters must be an object or null"),
        ("llama", {"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        (
            "llama",
            {"rope_scaling": {"type": ["yarn"]}},
            r"rope_scaling: type must .*got \['yarn'\]",
        ),
        ("llama", {"rope_scaling": {"rope_type": None}}, "rope_type must be one of"),
        ("llama", {"rope_scaling": {"rope_type": "mrope"}}, "rope_type must .*got 'mrope'"),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            "a field must be one of .*, got 'full_attention'",
        ),
        ("llama", {"hidden_act": {}}, "hidden_act must be one of 'silu'"),
        ("llama", {"hidden_act": None}, "hidden_act must .*got None"),
        ("llama", {"hidden_size": 32.0}, "hidden_size must be an integer"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers must .*got True"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings must .*got 'false'"),
        (
            "llama",
            {"rms_norm_eps": float("nan")},
            "rms_norm_eps must be a number above 0.*, got nan",
        ),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps must .*got inf"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps must .*got '1e-6'"),
        ("llama", {"rope_theta": -1e4}, "rope_theta must be a number above 0.*, got -10000.0"),
        ("llama", {"rope_theta": 0}, "rope_theta must .*got 0"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta must .*got nan"),
        ("llama", {"rope_theta": 10**400}, "rope_theta must be .*, got an integer of 400 digits"),
        ("llama", {"rope_theta": None}, "rope_theta must .*got None"),
        ("llama", {"rope_parameters": {"rope_theta": None}}, "rope_theta must .*got None"),
        (
            "llama",
            {"layer_types": ["sliding_attention"] * 4},
            "layer_types must .*got .*sliding_attention",
        ),
        ("llama", {"sliding_window": 5}, "sliding_window must .*changes the model.*got 5"),
        ("mistral", {"sliding_window": -4}, "sliding_window must be an integer from 1 .*got -4"),
        ("mistral", {"sliding_window": 2**40}, "sliding_window must .*got 1099511627776"),
        ("mistral", {"num_key_value_heads": None}, "num_key_value_heads must .*got None"),
        ("mistral", {"layer_types": 4}, "layer_types must be a list.*, got 4"),
        ("mistral", {"layer_types": [1, 2, 3, 4]}, r"layer_types must .*got .*1"),
        (
            "mistral",
            {"layer_types": [["full_attention"]] * 4},
            r"layer_types must .*got .*\['full_attention'\]",
        ),
        ("qwen2", {"max_window_layers": "28"}, "max_window_layers must .*got '28'"),
        ("qwen3", {"head_dim": None}, "head_dim must be an integer .*got None"),
        ("qwen3", {"num_attention_heads": {}}, "num_attention_heads must .*got {}"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must .*got 0"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must .*got 0"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 5.0}},
            "rope_parameters must have .*, got 'rope_theta'",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": 5}},
            "rope_parameters: sliding_attention must be an object or null, got 5",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping must .*got 0.0"),
        ("qwen3_5_text", {"full_attention_interval": 0}, "full_attention_interval must .*got 0"),
        ("qwen3_5_text", {"partial_rotary_factor": 0.0}, "partial_rotary_factor must .*got 0.0"),
        (
            "qwen3_5_text",
            {"linear_conv_kernel_dim": 10**6},
            "linear_conv_kernel_dim must .*got 1000000",
        ),
        ("ouro", {"total_ut_steps": "4"}, "total_ut_steps must be an integer .*got '4'"),
        ("ouro", {"total_ut_steps": 10**9}, "total_ut_steps must .*got 1000000000"),
        ("ouro", {"early_exit_threshold": float("nan")}, "early_exit_threshold must .*got nan"),
        ("gemma3", {"hidden_size": "big"}, "text_config: hidden_size must .*got 'big'"),
    ],
)
def test_wrong_types_and_ranges_are_named(family, change, message):
    with pytest.raises(UnsupportedModelError, match=message) as error:
        config_from_hf(valid(family, **change), source="dir/config.json")
    assert str(error.value).startswith("dir/config.json: ")
    assert len(str(error.value)) <= MESSAGE_LIMIT


def test_text_config_must_be_an_object():
    for value in (None, [], "text", 5):
        with pytest.raises(UnsupportedModelError, match=r"text_config must be an object, got"):
            config_from_hf({"model_type": "gemma3", "text_config": value})
    with pytest.raises(UnsupportedModelError, match="text_config must be an object, got nothing"):
        config_from_hf({"model_type": "qwen3_5"})


@pytest.mark.parametrize("family", [*FIELDS, *TOWERS])
def test_sizes_are_bounded_before_anything_is_allocated(family):
    start = time.perf_counter()
    sizes = [*SIZES, "linear_conv_kernel_dim"] if "qwen3_5" in family else [*SIZES]
    for name in sizes:
        for size in (10**7, 10**9, 10**15, 10**4000):
            if (name, size) == ("vocab_size", 10**7):
                continue
            with pytest.raises(
                UnsupportedModelError, match=f"{name} must be .*, got {re.escape(shown(size))}"
            ) as error:
                config_from_hf(valid(family, **{name: size}))
            assert len(str(error.value)) <= MESSAGE_LIMIT
    assert time.perf_counter() - start < 5


SWAPS = [
    *(None, True, False, 0, 1, -1, 3, 10**7, 10**15, 10**400, 0.0, 0.5, 4096.0, -1.5, 1e308),
    *(float("nan"), float("inf"), "", "4", "silu", "full_attention", "\ud800", "x" * 5000),
    *([], [1], ["full_attention"] * 4, [[]], [None] * 9, {}, {"rope_type": "yarn"}, {"a": {}}),
]
NESTED = {"factor": 2.0, "rope_type": "yarn", "original_max_position_embeddings": 16}


def test_swapped_types_end_in_one_message_or_a_decoder():
    """Every field of every family, each with some of SWAPS, and inside of rotary objects."""
    rng = np.random.default_rng(0)
    tried = refused = 0
    for family in [*FIELDS, *TOWERS]:
        read = FIELDS.get(family, FIELDS.get(family + "_text"))
        for name in [*read, *INERT, "model_type", "text_config", "eos_token_id"]:
            for i in rng.permutation(len(SWAPS))[:6]:
                raw = valid(family)
                (raw if rng.integers(2) else raw.get("text_config", raw))[name] = SWAPS[i]
                tried, refused = tried + 1, refused + _is_refused(raw)
        for name in (*NESTED, "beta_fast", "truncate", "mscale", "short_factor", "rope_theta"):
            for swap in SWAPS:
                inside = {**NESTED, name: swap}
                raw = valid(family, rope_scaling=inside)
                tried, refused = tried + 1, refused + _is_refused(raw)
    assert tried > 300
    assert 0.5 < refused / tried < 1


def _is_refused(raw: dict) -> bool:
    json.dumps(raw)  # such a file can be
    try:
        config = config_from_hf(raw)
    except UnsupportedModelError as error:
        assert len(str(error)) <= MESSAGE_LIMIT
        return True
    assert hash(config) == hash(config)
    return False
