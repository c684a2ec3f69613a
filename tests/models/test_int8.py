"""Matrices in int8: what they hold, what the decoder makes of them, and the memory that saves."""

from __future__ import annotations

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from systems import CONFIGS, random_params

from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.thinking import think
from rmas_jax.config import load_config
from rmas_jax.models import (
    CheckpointError,
    Decoder,
    config_from_hf,
    load_pretrained,
    save_pretrained,
    seal,
)
from rmas_jax.models.int8 import is_quantised, quantised
from rmas_jax.models.weights import apart, weight_table
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, run_rounds
from rmas_jax.sharding import make_mesh
from rmas_jax.team import load_team

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LINEAR = {
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
}
FAMILIES = {
    "qwen3": dataclasses.replace(CONFIGS["planner"], vocab_size=40, tie_embeddings=False),
    "gemma3": config_from_hf({"model_type": "gemma3_text", **SIZES}),  # embeddings tied and scaled
    "qwen3_5": config_from_hf({"model_type": "qwen3_5_text", **SIZES, **LINEAR}),
    "ouro": config_from_hf({"model_type": "ouro", **SIZES, "total_ut_steps": 2}),
}
# Kernels dominate, as in models of real size.
LARGE = config_from_hf(
    {"model_type": "llama", **SIZES}
    | {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "num_hidden_layers": 6}
)
IDS = np.array([[5, 3, 8, 1], [0, 0, 2, 9]])
VALID = IDS > 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Function from a config to a directory with a random model of it."""
    directories = {}

    def build(config):
        if config not in directories:
            directory = tmp_path_factory.mktemp("checkpoint")
            save_pretrained(directory, Decoder(config), random_params(config, 0))
            directories[config] = directory
        return directories[config]

    return build


def by_definition(params):
    """The same parameters as float arrays, by numpy: values times scales."""
    return jax.tree.map(
        lambda x: x.qvalue.astype(x.scale.dtype) * np.asarray(x.scale) if is_quantised(x) else x,
        params,
        is_leaf=is_quantised,
    )


def rounded(params, levels):
    """The same parameters with every matrix rounded, per last axis, to so many levels a side."""

    def coarse(x):
        step = np.abs(x).max(axis=-2, keepdims=True) / levels
        return np.round(x / step) * step

    return jax.tree.map(lambda x: coarse(np.asarray(x)) if x.ndim > 2 else x, params)


def num_bytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def outputs(model, params):
    """Hidden states, logits, and a loss's gradient with respect to embeddings [B, T, D]."""

    @jax.jit
    def run(params):
        embeds = model.apply({"params": params}, IDS, method="embed")

        def loss(embeds):
            hidden = model.apply({"params": params}, embeds, jnp.asarray(VALID))
            logits = model.apply({"params": params}, hidden, method="unembed")
            return jax.nn.log_softmax(logits)[VALID][:, 3].sum(), (hidden, logits)

        (_, (hidden, logits)), slope = jax.value_and_grad(loss, has_aux=True)(embeds)
        return embeds, hidden, logits, slope

    return {
        name: np.asarray(x, np.float32)[VALID]
        for name, x in zip(("embeds", "hidden", "logits", "slope"), run(params), strict=True)
    }


def assert_close(ours, expected, tolerance):
    """Every output is within `tolerance`, relative to its largest value."""
    for name, x in expected.items():
        largest = np.abs(x).max()
        assert largest > 0.05
        np.testing.assert_allclose(
            ours[name] / largest, x / largest, rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_the_nearest_multiples_of_their_channels_scale(checkpoint, family):
    config = FAMILIES[family]
    _, params = load_pretrained(checkpoint(config))
    _, kept = load_pretrained(checkpoint(config), weights="int8")
    params, kept = traverse_util.flatten_dict(params), traverse_util.flatten_dict(kept)
    for weight in weight_table(config):
        param, ours = np.asarray(params[weight.path], np.float64), kept[weight.path]
        if not weight.scale_axes:
            np.testing.assert_array_equal(ours, param)
            continue
        shared = tuple(axis + weight.is_stacked for axis in weight.scale_axes)
        largest = np.abs(param).max(axis=shared, keepdims=True)
        assert (ours.qvalue.dtype, ours.dtype) == (jnp.int8, jnp.float32)
        np.testing.assert_allclose(ours.scale, largest / 127.5, rtol=1e-6)
        steps = np.abs(np.asarray(ours.qvalue) - param / ours.scale)
        assert 0.49 < steps.max() < 0.5 + 1e-4  # half a step, and it is not a finer one
        assert np.abs(np.asarray(ours.qvalue, int)).max(axis=shared).min() >= 127


def test_every_large_matrix_is_in_int8(checkpoint):
    small = {"rate_kernel", "decay_kernel", "conv_kernel", "exit_kernel"}
    for config in FAMILIES.values():
        _, kept = load_pretrained(checkpoint(config), weights="int8")
        for path, param in traverse_util.flatten_dict(kept).items():
            matrix = path[-1] == "embedding" or path[-1].endswith("_kernel")
            assert is_quantised(param) == (matrix and path[-1] not in small), path


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_equals_that_of_the_dequantised_parameters(checkpoint, family):
    directory = checkpoint(FAMILIES[family])
    model, kept = load_pretrained(directory, weights="int8")
    expected = outputs(model, by_definition(kept))
    exact = outputs(model, load_pretrained(directory)[1])
    assert_close(outputs(model, kept), expected, 1e-5)
    assert_close(outputs(model.clone(unroll_layers=True), apart(kept)), expected, 1e-5)
    for name, x in expected.items():  # the control: the tolerance tells rounded weights from others
        assert np.abs(exact[name] - x).max() > 1e-3 * np.abs(x).max()


def test_rounding_moves_hidden_states_by_a_few_percent(checkpoint):
    model, params = load_pretrained(checkpoint(LARGE))
    _, kept = load_pretrained(checkpoint(LARGE), weights="int8")
    exact = outputs(model, params)["hidden"]

    def error(other):
        return np.linalg.norm(outputs(model, other)["hidden"] - exact) / np.linalg.norm(exact)

    assert 1e-3 < error(kept) < 0.06
    assert error(rounded(params, levels=7)) > 0.3  # the control: four bits


def test_parameters_take_a_quarter_of_the_memory(checkpoint):
    held = {
        (dtype, weights): num_bytes(load_pretrained(checkpoint(LARGE), dtype, weights=weights)[1])
        for dtype in ("float32", "bfloat16")
        for weights in ("int8", None)
    }
    assert held["float32", "int8"] <= 0.27 * held["float32", None]
    assert held["bfloat16", "int8"] <= 0.53 * held["bfloat16", None]


def think_and_differentiate(agent, embeds):
    """The gradient through single steps in a loop, as training has it."""

    def loss(embeds):
        hidden, cache = read(agent, embeds)
        return jnp.sum(think(agent, lambda x: x, hidden, cache, steps=4).thoughts ** 2)

    return jax.grad(loss)(embeds)


def write(agent, embeds):
    """Greedy text after embeddings."""
    return speak(agent, *read(agent, embeds), end_tokens=(), max_tokens=5).tokens


def read(agent, embeds):
    """The state at the last of the embeddings, and a cache with room for four steps."""
    hidden, cache = agent.read(embeds, jnp.ones(embeds.shape[:2], bool))
    return hidden[:, -1], seal(cache, agent.config, 4)


@pytest.fixture
def optimised():
    """Compiles as outside of the tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize(
    "function", [pytest.param(think_and_differentiate, marks=pytest.mark.slow), write]
)
def test_only_the_matrix_in_use_is_dequantised(checkpoint, optimised, monkeypatch, function):
    """What a program takes beside its parameters is no more than with float32 parameters."""
    agent = load_agent(checkpoint(LARGE))
    kept = load_agent(checkpoint(LARGE), weights="int8")
    embeds = jnp.zeros((1, 3, LARGE.width))

    def temporary(agent):
        # A function of its own each time: nothing that was traced before is taken again.
        compiled = jax.jit(functools.partial(function)).lower(agent, embeds).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_layer = num_bytes(agent.params["layers"]) / LARGE.num_layers
    assert temporary(kept) < temporary(agent) + one_layer / 2
    if function is think_and_differentiate:
        # The control: matrices that do not wait for what they meet leave the loop over steps.
        monkeypatch.setattr(jax.lax, "optimization_barrier", lambda x: x)
        assert temporary(kept) > temporary(agent) + 3 * one_layer


@pytest.mark.parametrize("family", ["qwen3", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(checkpoint, family):
    directory = checkpoint(FAMILIES[family])
    model, whole = load_pretrained(directory, weights="int8")
    one = make_mesh(devices=jax.devices()[:1])
    _, single = load_pretrained(directory, mesh=one, weights="int8")
    _, params = load_pretrained(directory, mesh=make_mesh(2, 2, 2), weights="int8")
    _, floats = load_pretrained(directory, mesh=make_mesh(2, 2, 2))
    for leaf, same, small in zip(*map(jax.tree.leaves, (params, whole, single)), strict=True):
        assert len(leaf.sharding.device_set) == 8 and len(small.sharding.device_set) == 1
        np.testing.assert_array_equal(leaf, same)
        np.testing.assert_array_equal(small, same)

    def halves(x):  # per dimension, into how many parts it is split
        return tuple(n // m for n, m in zip(x.shape, x.sharding.shard_shape(x.shape), strict=True))

    flat = traverse_util.flatten_dict(params)
    for path, float_ in traverse_util.flatten_dict(floats).items():
        if is_quantised(flat[path]):
            values, scales = flat[path].qvalue, flat[path].scale
            assert halves(values) == halves(float_)
            for size, parts, wanted in zip(
                scales.shape, halves(scales), halves(values), strict=True
            ):
                assert parts == (1 if size == 1 else wanted)
    assert halves(flat["embedding",].scale) == (4, 1)

    expected = outputs(model, single)
    assert_close(outputs(model, params), expected, 1e-4)
    other = jax.tree.map(lambda x: x * 1.01 if x.dtype == jnp.float32 else x, whole)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(outputs(model, other), expected, 1e-4)


def test_activations_have_the_dtype_of_the_scales(checkpoint):
    model, params = load_pretrained(checkpoint(FAMILIES["gemma3"]), "bfloat16", weights="int8")
    assert params["embedding"].dtype == jnp.bfloat16
    embeds = model.apply({"params": params}, IDS, method="embed")
    hidden = jax.jit(model.apply)({"params": params}, embeds, jnp.asarray(VALID))
    assert embeds.dtype == hidden.dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_team_thinks_in_rounds_as_with_dequantised_agents(tiny_system):
    system, prompts = tiny_system.system, tiny_system.prompts()
    channel = LatentChannel(system, tiny_system.links)

    @jax.jit
    def received(agents):
        return run_rounds(system, agents, channel, prompts, Unroll(rounds=2)).received

    kept = {}
    for role, agent in tiny_system.agents.items():
        flat = traverse_util.flatten_dict(agent.params)
        for weight in weight_table(agent.config):
            if not weight.scale_axes:
                continue
            param = flat[weight.path]
            layers = param if weight.is_stacked else param[None]
            flat[weight.path] = quantised(weight, layers, jnp.float32)
        kept[role] = Agent(agent.decoder, traverse_util.unflatten_dict(flat))
    ours, expected = received(kept), received(by_definition(kept))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(received(tiny_system.agents) - expected).max() > 1e-2


def test_a_configured_team_is_kept_in_int8():
    config = load_config("quickstart").system
    for weights in ("int8", None):
        agents = load_team(config, weights=weights).agents
        assert {is_quantised(agent.params["embedding"]) for agent in agents.values()} == {
            weights == "int8"
        }


def test_saving_is_refused(checkpoint, tmp_path):
    model, params = load_pretrained(checkpoint(FAMILIES["qwen3"]), weights="int8")
    with pytest.raises(CheckpointError, match="without weights='int8', got int8"):
        save_pretrained(tmp_path / "saved", model, params)
    assert not (tmp_path / "saved").exists()


def test_options_are_checked_before_any_file(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"weights must be None or one of int8, got 'int4'"):
        load_pretrained(tmp_path / "nowhere", weights="int4")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ImportError, match=r'needs qwix.*pip install "rmas_jax\[int8\]"'):
        load_pretrained(tmp_path / "nowhere", weights="int8")
