"""The fields of `config.json`: as transformers reads them, typed, bounded, none overlooked."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import logging
import re

import numpy as np
import pytest
import torch
import transformers
from models.test_published_sizes import CONFIGS

from rmas_jax.models import UnsupportedModelError, config_from_hf
from rmas_jax.models.activations import ACTIVATIONS, FROM_HF
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.hf_config import FIELDS, HARMLESS, INERT
from rmas_jax.models.hf_fields import REQUIRED

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
KNOWN = [family for family in FIELDS if family != "ouro"]  # to transformers
# What transformers' classes take besides their fields; `Ouro` is read in its own published class.
POPPED = {
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "per_layer_config",
    "original_max_position_embeddings",
}
TOWERS = ("gemma3", "qwen3_5")


def valid(family: str, **changes) -> dict:
    """A file of the family, without the fields that are set to `...`."""
    if family in TOWERS:
        return {"model_type": family, "text_config": valid(family + "_text", **changes)}
    own = {"head_dim": 16} if family == "qwen3_5_text" else {}
    raw = SIZES | own | {"model_type": family} | changes
    return {name: value for name, value in raw.items() if value is not ...}


def class_of(family: str) -> type[transformers.PreTrainedConfig]:
    return type(transformers.AutoConfig.for_model(family))


# --- As transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KNOWN)
def test_no_field_that_transformers_knows_is_overlooked(family):
    known = {field.name for field in dataclasses.fields(class_of(family))} | POPPED
    assert known - FIELDS[family].keys() - HARMLESS.keys() - INERT.keys() <= (
        # Gemma-3 reads it in the objects of each kind of layer alone.
        {"original_max_position_embeddings"} if family == "gemma3_text" else set()
    )
    assert not FIELDS[family].keys() & HARMLESS.keys()


@pytest.mark.parametrize("family", KNOWN)
def test_no_field_that_transformers_computes_with_is_overlooked(family):
    """As its source says, and that of masks, caches and rotations: `config.x`, `getattr(...)`."""
    name = {"gemma3_text": "gemma3", "qwen3_5_text": "qwen3_5"}.get(family, family)
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    parts = [transformers.masking_utils, transformers.cache_utils]
    parts += [transformers.modeling_rope_utils]
    parts += [
        part
        for own, part in vars(module).items()
        if (inspect.isclass(part) or inspect.isfunction(part))
        and part.__module__ == module.__name__
        and not re.search("Vision|Conditional|MultiModal|(Gemma3|Qwen3_5)Model$", own)
    ]
    source = "\n".join(map(inspect.getsource, parts))
    found = re.findall(r"config\.(\w+)|getattr\((?:self\.)?\w*config\w*, \"(\w+)\"", source)
    names = {dotted or asked for dotted, asked in found}
    assert {"rope_parameters", "is_causal", "sliding_window", "rms_norm_eps"} <= names
    methods = {"default_theta", "get_text_config", "standardize_rope_params", "validate_rope"}
    known = FIELDS[family].keys() | HARMLESS.keys() | INERT.keys()
    elsewhere = {
        "gemma3_text": {"original_max_position_embeddings", "hidden_act"},  # by other families
        "mistral": {"layer_types"},  # a Mistral that has them is a Ministral
    }
    assert names - known - methods - {"json"} <= elsewhere.get(family, set())


@pytest.mark.parametrize("family", KNOWN)
def test_defaults_are_those_of_transformers(family):
    theirs = class_of(family)
    defaults = {field.name: field.default for field in dataclasses.fields(theirs)}
    bases = theirs.default_theta
    if isinstance(bases, dict):
        defaults |= {"rope_theta": bases["global"], "rope_local_base_freq": bases["local"]}
    else:
        defaults["rope_theta"] = bases
    for name, field in FIELDS[family].items():
        if name in defaults and field.default is not REQUIRED:
            assert field.default == defaults[name], name
    made = theirs(**{"num_hidden_layers": 12})
    ours = config_from_hf(valid(family, num_hidden_layers=12))
    for said, kind in ((ours.sliding_layers, "sliding"), (ours.linear_layers, "linear")):
        kinds = getattr(made, "layer_types", None)
        if kinds is not None:
            assert list(said or [False] * 12) == [k.startswith(kind) for k in kinds]


@pytest.mark.parametrize("family", KNOWN)
def test_null_is_allowed_where_transformers_allows_it(family):
    names = {field.name for field in dataclasses.fields(class_of(family))}
    for name, field in FIELDS[family].items():
        if name not in names:
            continue
        try:
            class_of(family)(**{name: None})
            allows = True
        except Exception:
            allows = False
        assert field.null == allows, name


@pytest.mark.parametrize("name", FROM_HF)
def test_activations_are_those_of_transformers(name):
    x = np.linspace(-6, 6, 200, dtype=np.float32)
    expected = transformers.activations.ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[FROM_HF[name]].apply(x), expected, atol=2e-6)
    others = [other for key, other in ACTIVATIONS.items() if key != FROM_HF[name]]
    assert all(np.abs(other.apply(x) - expected).max() > 1e-4 for other in others)


def test_published_files_load_with_all_that_stands_in_them():
    vendor = {
        "_attn_implementation_autoset": True,
        "_name_or_path": "somewhere/else",
        "attention_dropout": 0.1,
        "auto_map": {"AutoConfig": "configuration.MyConfig"},
        "bos_token_id": 1,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "initializer_range": 0.02,
        "max_window_layers": 21,
        "mtp_num_hidden_layers": 1,
        "pretraining_tp": 2,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0",
        "unsloth_fixed": True,
        "use_cache": True,
        "use_mrope": False,
    }
    for raw in CONFIGS.values():
        longer = {"max_position_embeddings": 131072, **vendor, **raw}
        assert config_from_hf(longer) == config_from_hf(raw)
    nemo = {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    }
    config = config_from_hf(nemo | vendor)
    assert (config.head_dim, config.window, config.sliding_layers) == (128, None, ())
    made_of_qwen = {"use_sliding_window": False, "sliding_window": 4096}
    assert config_from_hf(valid("llama", **made_of_qwen)) == config_from_hf(valid("llama"))
    old_llama = {name: nemo[name] for name in list(nemo)[1:6]} | {"model_type": "llama"}
    assert config_from_hf(old_llama).num_kv_heads == 32


def test_mistral_with_layer_kinds_is_a_ministral():
    kinds = ["sliding_attention", "full_attention"] * 2
    config = config_from_hf(valid("mistral", layer_types=kinds, sliding_window=3))
    assert config.sliding_layers == (True, False, True, False)
    written = config_to_hf(config)
    assert (written["model_type"], written["layer_types"]) == ("ministral", kinds)
    assert config_from_hf(written) == config
    assert config_from_hf(valid("mistral", sliding_window=3)).sliding_layers == (True,) * 4


@pytest.mark.parametrize("family", TOWERS)
def test_embeddings_of_a_text_tower_are_tied_as_the_whole_model_says(family):
    default = transformers.AutoConfig.for_model(family).tie_word_embeddings
    assert config_from_hf(valid(family)).tie_embeddings == default
    for outer in (True, False):
        raw = valid(family) | {"tie_word_embeddings": outer}
        assert config_from_hf(raw).tie_embeddings == outer
        raw["text_config"]["tie_word_embeddings"] = not outer
        with pytest.raises(
            UnsupportedModelError,
            match=r"tie_word_embeddings in text_config must be .*, as in the whole model",
        ):
            config_from_hf(raw)
    alone = valid(family, tie_word_embeddings=True)
    assert config_from_hf(alone).tie_embeddings


def test_window_patterns_of_either_spelling():
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert config_from_hf(
        valid("gemma3_text", sliding_window_pattern=3, head_dim=8)
    ) == config_from_hf(valid("gemma3_text", layer_types=kinds, sliding_window_pattern=1))
    kinds = ["linear_attention", "full_attention"] * 2
    said = config_from_hf(valid("qwen3_5_text", full_attention_interval=2))
    assert said == config_from_hf(valid("qwen3_5_text", layer_types=kinds))
    older = ["mamba", "attention"] * 2  # transformers renames them
    assert said == config_from_hf(valid("qwen3_5_text", layer_types=older))


def test_rope_scaling_takes_the_place_of_rope_parameters_and_says_so(caplog):
    raw = valid("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert config_from_hf(raw).rope_theta == 5e5
    raw["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        config = config_from_hf(raw)
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(raw)).rope_parameters
    assert config.rope_theta == theirs["rope_theta"] == 1e4
    assert "config.json: rope_scaling replaces rope_parameters" in caplog.text
    assert "rope_theta is 10000.0, not 500000.0" in caplog.text
    caplog.clear()
    raw["rope_scaling"]["rope_theta"] = 5e5
    assert config_from_hf(raw).rope_theta == 5e5
    assert not caplog.records


def test_fields_of_another_rotation_are_named(caplog):
    rope = {"factor": 4.0, "original_max_position_embeddings": 512}  # no rope_type: nothing scales
    config = config_from_hf(valid("llama", rope_scaling=rope))
    assert config.rope_scaling.kind == "default"
    assert "does not use factor, original_max_position_embeddings" in caplog.text


def test_rotary_fields_of_other_programs_are_named(caplog):
    """As in DeepSeek-R1-0528-Qwen3-8B: transformers says that it does not know `attn_factor`."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    raw = valid("qwen3", rope_scaling=rope)
    plain = config_from_hf(raw)
    assert not caplog.records
    raw["rope_scaling"] = rope | {"attn_factor": 0.878, "extrapolation_factor": 1}
    assert config_from_hf(raw) == plain
    assert "does not use attn_factor, extrapolation_factor" in caplog.text
    with pytest.raises(UnsupportedModelError, match=r"a field must be one of .*, got 'atn_factor'"):
        config_from_hf(valid("qwen3", rope_scaling=rope | {"atn_factor": 1}))


# --- What changes a model and is not read ---------------------------------------------------------


@pytest.mark.parametrize("family", [*FIELDS, *TOWERS])
def test_options_that_change_a_model_are_refused_by_name(family):
    plain = config_from_hf(valid(family))
    read = FIELDS.get(family, FIELDS.get(family + "_text"))
    for name in INERT.keys() - read.keys():
        for value in INERT[name]:
            assert config_from_hf(valid(family, **{name: value})) == plain
        for value in (0.5, {"a": 1}, "x"):
            with pytest.raises(
                UnsupportedModelError, match=f"{name} must be absent or .*, got {value!r}"
            ):
                config_from_hf(valid(family, **{name: value}))
    if family in TOWERS:
        with pytest.raises(
            UnsupportedModelError, match=r"quantization_config must .*got {'bits': 4}"
        ):
            config_from_hf(valid(family) | {"quantization_config": {"bits": 4}})


def test_a_field_of_no_class_can_change_what_transformers_computes():
    """Why `is_causal` is refused: masks look for it in every family."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    outs = []
    for changes in ({}, {"is_causal": False}):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**valid("llama", **changes))
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        outs.append(model(ids).logits.detach().numpy())
    assert np.abs(outs[0] - outs[1]).max() > 1e-4
    with pytest.raises(
        UnsupportedModelError, match=r"is_causal must be absent or true .*, got False"
    ):
        config_from_hf(valid("llama", is_causal=False))


KINDS = ["full_attention", "sliding_attention"] * 2
# Field -> another value of it, and what it takes for that to matter.
CHANGES = {
    "vocab_size": (62, {}),
    "hidden_size": (64, {}),
    "intermediate_size": (25, {}),
    "num_hidden_layers": (5, {}),
    "num_attention_heads": (8, {}),
    "num_key_value_heads": (1, {}),
    "head_dim": (24, {}),
    "max_position_embeddings": (128, {"rope_scaling": {"rope_type": "yarn", "factor": None}}),
    "rms_norm_eps": (1e-3, {}),
    "hidden_act": ("gelu", {}),
    "hidden_activation": ("gelu", {}),
    "tie_word_embeddings": (..., {}),
    "rope_theta": (77.0, {}),
    "rope_local_base_freq": (77.0, {}),
    "rope_scaling": ({"rope_type": "linear", "factor": 2.0}, {}),
    "rope_parameters": ({"rope_theta": 77.0}, {}),
    "partial_rotary_factor": (0.5, {}),
    "original_max_position_embeddings": (64, {"rope_scaling": {"type": "yarn", "factor": 2.0}}),
    "attention_bias": (True, {}),
    "mlp_bias": (True, {}),
    "query_pre_attn_scalar": (20, {}),
    "sliding_window": (3, {"use_sliding_window": True, "max_window_layers": 1}),
    "sliding_window_pattern": (2, {}),
    "use_sliding_window": (True, {"sliding_window": 3, "max_window_layers": 1}),
    "max_window_layers": (1, {"use_sliding_window": True}),
    "layer_types": (KINDS, {"use_sliding_window": True}),
    "full_attention_interval": (2, {}),
    "linear_num_key_heads": (8, {}),
    "linear_num_value_heads": (16, {}),
    "linear_key_head_dim": (64, {}),
    "linear_value_head_dim": (64, {}),
    "linear_conv_kernel_dim": (2, {}),
    "total_ut_steps": (2, {}),
}
# Each of these has one value that is supported, or changes nothing in transformers either.
ONE_VALUE = {
    "attn_output_gate",
    "early_exit_threshold",
    "early_exit_step",
    ("qwen3_5_text", "hidden_act"),
    ("llama", "layer_types"),
    ("mistral", "use_sliding_window"),
    ("ministral", "use_sliding_window"),
}


@pytest.mark.parametrize("family", FIELDS)
def test_every_field_that_is_read_changes_the_decoder(family):
    """And `test_cache.py` shows that every field of the decoder changes its output."""
    for name in FIELDS[family]:
        if name in ONE_VALUE or (family, name) in ONE_VALUE:
            continue
        if name == "partial_rotary_factor" and family != "qwen3_5_text":
            continue
        value, needs = CHANGES[name]
        if family in ("mistral", "ministral", "gemma3_text", "qwen3_5_text"):
            needs = {n: v for n, v in needs.items() if n in FIELDS[family]}
        if name == "tie_word_embeddings":
            value = not FIELDS[family][name].default
        if family == "qwen3_5_text" and name == "layer_types":
            value = ["full_attention", "linear_attention"] * 2
        if family == "gemma3_text" and name == "rope_parameters":
            value = {"full_attention": value}
        before = config_from_hf(valid(family, **needs))
        assert config_from_hf(valid(family, **{**needs, name: value})) != before, name
