"""Rotary frequencies against transformers, both spellings of their fields, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rmas_jax.models import UnsupportedModelError, config_from_hf
from rmas_jax.models.attention import rotary
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
    assert np.abs(np.log(ours / plain)).max() > 0.5 or factor != 1


def test_frequencies_without_scaling():
    np.testing.assert_allclose(
        rotary_frequencies(100.0, 4, RopeScaling()), np.array([1.0, 0.1], np.float32)
    )


@pytest.mark.parametrize("case", ["linear", "llama3", "yarn", "yarn-mscale"])
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


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type='dynamic'.*linear"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "rope_type='longrope'"),
        ({"type": "su"}, "rope_type='su'"),
        ({"rope_type": "linear"}, "'linear': field 'factor' is missing"),
        ({"rope_type": "yarn", "factor": 2.0}, "'original_max_position_embeddings' is missing"),
        (LLAMA3 | {"low_freq_factor": None}, "'low_freq_factor' is missing"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor=1.0: allowed is above"),
        (LLAMA3 | {"original_max_position_embeddings": 0}, "positive integer"),
        ({"rope_type": "linear", "factor": 0}, "factor=0: allowed is above 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor='2' is not a number"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_refused(rope, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(rope)


@pytest.mark.parametrize("fraction", [0.22, 0.03, 1.5, -0.25])  # of 24: odd, none, more, fewer
def test_refused_part_of_a_head(fraction):
    with pytest.raises(UnsupportedModelError, match="even number of rotated dimensions"):
        kinds = ["linear_attention", "full_attention"]
        read({"partial_rotary_factor": fraction}, model_type="qwen3_5_text", layer_types=kinds)


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
