"""Rotary frequencies against transformers, both spellings of their fields, and what is refused."""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rmas_jax.models import (
    UnsupportedModelError,
    config_from_hf,
    empty_cache,
    load_pretrained,
)
from rmas_jax.models.attention import rotary
from rmas_jax.models.cache import seal
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.rope import RopeScaling, rotary_frequencies

SIZES = {
    "vocab_size": 8,
    "hidden_size": 96,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 24,
    "max_position_embeddings": 4096,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(12)],
    "long_factor": [2.0 + i for i in range(12)],
    "original_max_position_embeddings": 512,
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 8.0},
    "llama3": LLAMA3,
    "llama3-narrow": LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 3.0, "factor": 3.0},
    "yarn": YARN,
    "yarn-bounds": YARN | {"beta_fast": 8.0, "beta_slow": 2.0},
    "yarn-exact-bounds": YARN | {"truncate": False},
    "yarn-factor": YARN | {"attention_factor": 1.5},
    "yarn-mscale": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5},
    "yarn-short": YARN | {"original_max_position_embeddings": 2},  # all waves are longer
    "yarn-without-length": {"rope_type": "yarn", "factor": 4.0},  # max_position_embeddings
    "yarn-ratio": YARN | {"factor": None},  # how much longer max_position_embeddings is
    "yarn-null-truncate": YARN | {"truncate": None},  # which is false
    "llama3-without-length": {
        name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": LONG,
    "longrope-factor": LONG | {"factor": 3.0},
    "longrope-attention": LONG | {"attention_factor": 1.5},
    "longrope-without-length": {
        name: value for name, value in LONG.items() if name != "original_max_position_embeddings"
    },
}


def read(rope, **more):
    return config_from_hf(SIZES | {"model_type": "llama", "rope_parameters": rope} | more)


@pytest.mark.parametrize("case", ROPES)
def test_frequencies_equal_transformers(case):
    rope = ROPES[case] | {"rope_theta": 5000.0}
    theirs = transformers.LlamaConfig(**SIZES, rope_parameters=dict(rope))
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs)
    config = read(rope)
    ours = rotary_frequencies(config.rope_theta, config.rotated_dim, config.rope_scaling)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    np.testing.assert_allclose(config.rope_scaling.attention_factor, factor, rtol=1e-12)
    plain = rotary_frequencies(5000.0, 24, RopeScaling())
    scales = np.abs(np.log(ours / plain)).max() > 0.5 or factor != 1
    assert scales == (case != "dynamic")  # which scales past the length of pretraining only
    assert config_from_hf(config_to_hf(config)) == config


def test_frequencies_without_scaling():
    np.testing.assert_allclose(
        rotary_frequencies(100.0, 4, RopeScaling()), np.array([1.0, 0.1], np.float32)
    )


@pytest.mark.parametrize("case", ["linear", "llama3", "yarn", "yarn-mscale", "dynamic", "longrope"])
def test_old_and_new_files_are_read_alike(case):
    rope = ROPES[case] | {"rope_theta": 5000.0}
    new = read(rope)
    old = dict(ROPES[case])
    for key in ("rope_type", "type"):  # the older of the old files say `type`
        spelled = {key if k == "rope_type" else k: v for k, v in old.items()}
        raw = SIZES | {"model_type": "llama", "rope_theta": 5000.0, "rope_scaling": spelled}
        assert config_from_hf(raw) == new
    assert config_from_hf(config_to_hf(new)) == new


def test_layers_of_gemma3_have_their_own():
    raw = SIZES | {"model_type": "gemma3_text", "rope_scaling": ROPES["linear"]}
    config = config_from_hf(raw)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.rope_scaling == RopeScaling("linear", 8.0)
    assert config.local_rope_scaling == RopeScaling()
    theirs = transformers.AutoConfig.for_model(**raw).rope_parameters
    again = config_from_hf(SIZES | {"model_type": "gemma3_text", "rope_parameters": theirs})
    assert again == config
    assert config_from_hf(config_to_hf(config)) == config
    both = {"full_attention": ROPES["llama3"], "sliding_attention": ROPES["linear"]}
    config = config_from_hf(SIZES | {"model_type": "gemma3_text", "rope_parameters": both})
    assert (config.rope_scaling.kind, config.local_rope_scaling.kind) == ("llama3", "linear")


@pytest.mark.parametrize("inside", [{}, {"truncate": False}])
@pytest.mark.parametrize("beside", [{}, {"truncate": False}])
def test_gemma3_reads_truncate_beside_its_rotations(inside, beside, caplog):
    """As transformers does, which looks for it there for every kind of layer."""
    ropes = {"full_attention": YARN | inside, "sliding_attention": ROPES["linear"], **beside}
    raw = SIZES | {"model_type": "gemma3_text", "num_key_value_heads": 4, "rope_parameters": ropes}
    config = config_from_hf(raw)
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(raw))
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs, layer_type="full_attention")
    ours = rotary_frequencies(config.rope_theta, config.rotated_dim, config.rope_scaling)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)
    other = dataclasses.replace(config.rope_scaling, truncate=not config.rope_scaling.truncate)
    other = rotary_frequencies(config.rope_theta, config.rotated_dim, other)
    assert np.abs(np.log(other / ours)).max() > 0.01
    assert ("truncate has no effect inside full_attention" in caplog.text) == bool(inside)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic"}, "rope_type='dynamic': factor must be .*, got nothing"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "long_factor must be .*, got nothing"),
        (LONG | {"short_factor": [1.0] * 11}, "short_factor must have 12 numbers, .*, got 11"),
        (LONG | {"long_factor": [1.0] * 13}, "long_factor must have 12 numbers, .*, got 13"),
        (
            LONG | {"short_factor": [0.0] * 12},
            "short_factor must be a list of numbers above 0, got",
        ),
        (LONG | {"original_max_position_embeddings": 1, "factor": 2.0}, "must be at least 2"),
        ({"type": "su"}, "type must be one of 'default', 'linear'"),
        ({"rope_type": "linear"}, "'linear': factor must be .*, got nothing"),
        ({"rope_type": "yarn"}, "'yarn': factor must be .*, got nothing"),
        (YARN | {"rope_theta": 1.0}, "rope_theta must be above 1.*, got 1.0"),
        (LLAMA3 | {"low_freq_factor": None}, "low_freq_factor must .*got None"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor must be above .*got 1.0"),
        (
            LLAMA3 | {"original_max_position_embeddings": 0},
            "original_max_position_embeddings must be an integer from 1 .*got 0",
        ),
        ({"rope_type": "linear", "factor": 0}, "factor must be a number above 0.*, got 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be a number .*got '2'"),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "partial_rotary_factor must .*got 0.5",
        ),
    ],
)
def test_refused(rope, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(rope)


@pytest.mark.parametrize(
    ("fraction", "message"),  # of 24: odd, none, more, fewer
    [
        (0.22, "even number of head_dim.*, got .*0.22"),
        (0.03, "even number of head_dim.*, got .*0.03"),
        (1.5, "a number above 0, at most 1, got 1.5"),
        (-0.25, "a number above 0, at most 1, got -0.25"),
    ],
)
def test_refused_part_of_a_head(fraction, message):
    with pytest.raises(UnsupportedModelError, match=message):
        kinds = ["linear_attention", "full_attention"]
        read({"partial_rotary_factor": fraction}, model_type="qwen3_5_text", layer_types=kinds)


LIMIT = 20
BOUNDED = {
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 50.0}},
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 50.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [3.0, 4.0, 5.0, 6.0],
            "factor": 4.0,
            "original_max_position_embeddings": LIMIT,
        }
    },
}


@pytest.mark.parametrize("kind", BOUNDED)
def test_frequencies_that_depend_on_the_longest_text_are_not_read_past_the_switch(kind, tmp_path):
    """Up to it, decoders are equal; past it, transformers' cached and uncached reads differ."""
    sizes = SIZES | {"vocab_size": 50, "hidden_size": 32, "head_dim": 8, "initializer_range": 0.2}
    sizes["max_position_embeddings"] = LIMIT if kind == "dynamic" else 4 * LIMIT
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **sizes, **BOUNDED[kind])
    ).eval()
    theirs.requires_grad_(False).save_pretrained(tmp_path)
    model, params = load_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 50, (1, LIMIT + 1))
    embeds = model.apply({"params": params}, ids, method="embed")
    valid = np.ones(ids.shape, bool)

    read = jax.jit(model.apply)
    ours = read({"params": params}, embeds[:, :-1], valid[:, :-1])
    expected = theirs.model(torch.tensor(ids[:, :-1])).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)

    message = f"rope_type='{kind}': .* at most {LIMIT} positions.*, got {LIMIT + 1}"
    with pytest.raises(UnsupportedModelError, match=message):
        read({"params": params}, embeds, valid)
    with pytest.raises(UnsupportedModelError, match=message):
        cache = empty_cache(model.config, 1, LIMIT + 1)
        read({"params": params}, embeds[:, :1], valid[:, :1], cache)
    sealed = seal(empty_cache(model.config, 1, LIMIT), model.config, 1)
    with pytest.raises(UnsupportedModelError, match=message):
        read({"params": params}, embeds[:, :1], valid[:, :1], sealed)

    first = theirs(torch.tensor(ids[:, :-1]), use_cache=True)
    cached = theirs(torch.tensor(ids[:, -1:]), cache=first.cache).logits[0, -1]
    at_once = theirs(torch.tensor(ids)).logits[0, -1]
    assert np.abs(at_once.numpy() - cached.numpy()).max() > 1e-2


def test_part_of_a_head_rotates():
    """As complex numbers: the pair (i, i + 2) of the first four turns, the rest stands still."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 6)).astype(np.float32)
    positions = np.array([[0, 1, 2], [5, 6, 90]])
    frequencies = jnp.array([0.5, 0.01], jnp.float32)
    ours = rotary(x, positions, frequencies, 1.5)
    turn = 1.5 * np.exp(1j * positions[:, :, None, None] * np.array([0.5, 0.01]))
    turned = (x[..., :2] + 1j * x[..., 2:4]) * turn
    expected = np.concatenate([turned.real, turned.imag, x[..., 4:]], axis=-1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
