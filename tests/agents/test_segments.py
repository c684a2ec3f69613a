"""A gradient through segments of a rollout is that through one scan, and stores less."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, LINEAR, build_tiny_system, random_agent

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.thinking import segments, think
from rmas_jax.models import abstract_agent
from rmas_jax.models.cache import empty_state
from rmas_jax.planning.hlo import program_cost
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds

BATCH = 2


@functools.partial(jax.jit, static_argnames=("steps", "truncate_steps", "recompute"))
def gradients(agent, turn, embeds, weights, *, steps, **how):
    """Of thoughts with respect to the link and to the embeddings that are read before."""

    def scalar(turn, embeds):
        hidden, cache = agent.read(embeds, jnp.ones(embeds.shape[:2], bool))
        cache = agent.seal(cache, 0)
        made = think(agent, lambda x: jnp.tanh(x @ turn), hidden[:, -1], cache, steps=steps, **how)
        return (made.thoughts * weights).sum(), made.thoughts

    return jax.grad(scalar, argnums=(0, 1), has_aux=True)(turn, embeds)


@pytest.mark.parametrize(
    ("config", "steps", "truncate_steps"),
    [(CONFIGS["solver"], 16, None), (LINEAR, 20, None), (LINEAR, 20, 7)],
    ids=["attention", "linear layers", "truncated"],
)
def test_gradients_are_those_of_one_scan(config, steps, truncate_steps):
    rng = np.random.default_rng(0)
    agent, width = random_agent(config, 0), config.width
    turn = rng.normal(size=(width, width)).astype(np.float32) / width**0.5
    embeds = rng.normal(size=(BATCH, 4, width)).astype(np.float32)
    weights = rng.normal(size=(BATCH, steps, width)).astype(np.float32)
    of = functools.partial(gradients, agent, turn, embeds, weights, steps=steps)
    plain, made = of(truncate_steps=truncate_steps)
    ours, same = of(truncate_steps=truncate_steps, recompute=True)
    np.testing.assert_allclose(same, made, rtol=1e-5, atol=1e-5)
    # The control: a gradient that stops where a segment starts.
    count, length = segments(steps - 1)
    assert count > 1
    stopped, _ = of(truncate_steps=length)
    for expected, found, other in zip(plain, ours, stopped, strict=True):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-5 * largest)
        assert np.abs(other - expected).max() > 1e-3 * largest


def test_segments_hold_all_steps_in_two_square_roots():
    for steps in range(1, 300):
        count, length = segments(steps)
        assert steps <= count * length < steps + length
        if steps < 15:
            assert (count, length) == (1, steps)
        else:
            assert count + length + count * length - steps <= 2 * steps**0.5 + 6
    assert segments(63) == (9, 7)


def test_a_gradient_stores_two_square_roots_of_the_carries():
    """64 thoughts of an agent whose linear states are most of what it carries."""
    config = dataclasses.replace(LINEAR, linear_key_dim=32, linear_value_dim=32)
    agent, width, steps = Agent(*abstract_agent(config)), config.width, 64
    shapes = ((width, width), (BATCH, 4, width), (BATCH, steps, width))
    args = (agent, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))

    def temporaries(**how):
        compiled = gradients.lower(*args, steps=steps, **how).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state = jax.eval_shape(lambda: empty_state(config, BATCH)).memory
    carry = state.size * state.dtype.itemsize
    plain, ours = temporaries(), temporaries(recompute=True)
    assert plain > (steps - 1) * carry
    assert sum(segments(steps - 1)) * carry < ours < 0.4 * plain


def test_a_rollout_that_is_not_recomputed_multiplies_half_as_much():
    """Forward and backward, in place of forward, two recomputations and backward."""
    config = dataclasses.replace(CONFIGS["solver"], width=64, ffn_width=256)
    agent, width, steps = Agent(*abstract_agent(config)), config.width, 32
    shapes = ((width, width), (BATCH, 1, width), (BATCH, steps, width))
    args = (agent, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))

    def flops(**how):
        return program_cost(gradients.lower(*args, steps=steps, **how).compile().as_text()).flops

    stored, recomputed = flops(), flops(recompute=True)
    assert stored == pytest.approx(recomputed / 2, rel=0.1)


def scan_lengths(function):
    """Lengths of all scans in a program."""
    return set(map(int, re.findall(r"\blength=(\d+)", str(jax.make_jaxpr(function)()))))


def test_rounds_with_a_gradient_have_segments_and_others_have_none():
    tiny = build_tiny_system(latent_steps=20)
    channel = LatentChannel(tiny.system, tiny.links)
    args = tiny.system, tiny.agents, channel, tiny.prompts()
    trained = scan_lengths(lambda: run_rounds(*args, Unroll(rounds=2)).received)
    inference = scan_lengths(lambda: listen(*args, rounds=2).prompt.received)
    count, length = segments(19)
    assert {count, length} <= trained and 19 not in trained
    assert 19 in inference and not {count, length} & inference
