"""Least times: FLOPs and bytes of the formulas against those of compiled programs."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from systems import CONFIGS

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.thinking import think
from rmas_jax.config import SweepConfig
from rmas_jax.models import abstract_agent
from rmas_jax.planning import bounds
from rmas_jax.planning.hlo import program_cost

STEPS, PROMPT = 9, 4
WIDE = dataclasses.replace(CONFIGS["solver"], width=512, ffn_width=1024)  # mostly weights


def agents():
    agent = Agent(*abstract_agent(WIDE))
    return {"scanned": agent, "unrolled": agent.unrolled()}


def state_of(agent, rows):
    """State and cache after a prompt, abstract."""

    def read(agent, ids):
        hidden, cache = agent.read(agent.embed(ids), jnp.ones(ids.shape, bool))
        return hidden[:, -1], agent.seal(cache, 0)

    return jax.eval_shape(read, agent, jax.ShapeDtypeStruct((rows, PROMPT), jnp.int32))


def cost_of(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return program_cost(text, unknown_trips=STEPS - 1)


def thoughts(agent, hidden, cache):
    return think(agent, lambda x: x, hidden, cache, steps=STEPS).thoughts


def text(agent, hidden, cache):
    return speak(agent, hidden, cache, end_tokens=(), max_tokens=STEPS).tokens


@pytest.mark.parametrize(("function", "writes"), [(thoughts, False), (text, True)])
@pytest.mark.parametrize("way", ["scanned", "unrolled"])
def test_single_steps(function, writes, way):
    agent = agents()[way]
    bound = bounds.single_steps(agent, 2, STEPS - 1, PROMPT, writes=writes)
    cost = cost_of(function, agent, *state_of(agent, 2))
    first = 2 * agent.width * agent.config.vocab_size * 2 * writes  # logits before the first step
    assert cost.flops - first == pytest.approx(bound.repeats * bound.flops, rel=0.05)
    least = bound.repeats * (bound.weights + bound.caches)
    if way == "unrolled":
        assert cost.memory_bytes == pytest.approx(least, rel=0.05)
    else:  # a CPU copies each layer's weights out of the stack: one read, a write, another read
        assert cost.memory_bytes == pytest.approx(3 * least, rel=0.1)


def test_parallel_thinking_takes_at_least_a_sweep_over_each_window():
    agent, system = agents()["scanned"], SimpleNamespace(latent_steps=9, sweeps=None)
    apart = bounds.thinking(system, agent, 2, PROMPT)
    assert apart == bounds.single_steps(agent, 2, 8, PROMPT)
    system.sweeps = SweepConfig(window=4)
    swept = bounds.thinking(system, agent, 2, PROMPT)
    assert (swept.repeats, swept.weights) == (2, apart.weights)
    assert swept.repeats * swept.flops == pytest.approx(apart.repeats * apart.flops, rel=0.05)


def test_reading():
    agent = agents()["scanned"]
    ids = jax.ShapeDtypeStruct((2, 24), jnp.int32)
    read = functools.partial(Agent.read, valid=jnp.ones(ids.shape, bool))
    cost = cost_of(lambda agent, ids: read(agent, agent.embed(ids))[0], agent, ids)
    assert cost.flops == pytest.approx(bounds.reading(agent, 2, 24).flops, rel=0.05)
