"""Single steps write the new keys and values into a tail in place, and copy no others."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, LINEAR, random_agent

from rmas_jax.agents import pool
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sampling import GREEDY, speak
from rmas_jax.agents.thinking import think
from rmas_jax.config import SweepConfig
from rmas_jax.models import abstract_agent
from rmas_jax.planning.hlo_text import parse

B, P, STEPS = 3, 5, 9
LOOPED = dataclasses.replace(CONFIGS["planner"], loops=2)
ENDS = {"end_tokens": (1,), "max_tokens": STEPS + 1}


def thoughts(agent, hidden, cache):
    return think(agent, jnp.tanh, hidden, cache, steps=STEPS + 1).thoughts


def text(agent, hidden, cache):
    return speak(agent, hidden, cache, **ENDS).tokens


def text_unrolled(agent, hidden, cache):
    return text(agent.unrolled(), hidden, cache)


def thoughts_unrolled(agent, hidden, cache):
    return thoughts(agent.unrolled(), hidden, cache)


def swept(agent, hidden, cache):
    how = SweepConfig(tolerance=0.0, window=4)
    return think(agent, jnp.tanh, hidden, cache, steps=STEPS + 1, sweeps=how).thoughts


def swept_unrolled(agent, hidden, cache):
    return swept(agent.unrolled(), hidden, cache)


def sliced(agent, hidden, cache):
    """The control: layers of a step take their caches out of a stack."""

    def step(now, _):
        embeds, valid = hidden[:, None], jnp.ones((B, 1), bool)
        return agent.read(embeds, valid, now.replace(past=cache.past))[1].replace(past=()), None

    agent = agent.unrolled()
    return jax.lax.scan(step, agent.with_room(cache, STEPS).replace(past=()), None, STEPS)[0]


def refilled(agent, hidden, cache):
    begun = pool.begin(agent, hidden, cache, sampling=GREEDY, **ENDS)
    rows = pool.empty_pool(agent.decoder, begun)
    return pool.run(agent, rows, jnp.int32(B), sampling=GREEDY, **ENDS).text.tokens


def handed_on(agent, hidden, cache):
    """The control: every layer takes its part of the tail, writes, and hands it on."""
    tail = agent.with_room(cache, STEPS).tail.keys

    def layer(x, keys):
        keys = jax.lax.dynamic_update_slice_in_dim(keys, keys[:, :, :1] + x, 0, axis=2)
        return x + keys.sum(), keys

    def step(carry, _):
        return jax.lax.scan(layer, *carry), None

    return jax.lax.scan(step, (hidden.sum(), tail), None, STEPS)[0]


def in_loops(program, shape):
    """Instructions of loops whose result has this shape, with their computations."""
    computations = parse(program).computations
    every = [x for computation in computations.values() for x in computation.instructions.values()]
    names = {name for x in every if x.opcode == "while" for name in x.called("body")}
    while more := {name for of in names for name in called_by(computations[of])} - names:
        names |= more
    for name in names:
        for x in computations[name].instructions.values():
            if x.shapes and x.shapes[0].sizes == shape:
                yield computations[name], x


def called_by(computation):
    for x in computation.instructions.values():
        yield from x.called("calls", "to_apply", "body", "branch_computations")


def written_bytes(program, shape):
    """Bytes of an array of this shape that one step writes, over all loops."""
    found = 0
    for computation, x in in_loops(program, shape):
        if x.opcode == "copy":
            found += x.bytes
        elif x.opcode == "dynamic-update-slice":
            found += computation.operand(x, 1).bytes
    return found


def compiled(function, config):
    agent = Agent(*abstract_agent(config))
    hidden = jax.ShapeDtypeStruct((B, config.width), jnp.float32)
    cache = jax.eval_shape(lambda: agent.seal(agent.empty_cache(B, P), 0))
    return jax.jit(functools.partial(function)).lower(agent, hidden, cache).compile().as_text()


@pytest.mark.parametrize(
    ("function", "config", "slots"),
    [
        (text, CONFIGS["solver"], STEPS),
        (thoughts, LINEAR, STEPS),
        (text, LOOPED, STEPS),
        (text_unrolled, CONFIGS["solver"], STEPS),
        (thoughts_unrolled, CONFIGS["solver"], STEPS),
        (refilled, CONFIGS["planner"], STEPS),
        (handed_on, CONFIGS["planner"], STEPS),
    ],
    ids=[
        "text",
        "thoughts, linear layers",
        "text, two loops",
        "text, unrolled",
        "thoughts, unrolled",
        "pool",
        "the control",
    ],
)
def test_a_step_writes_one_row_of_a_tail(function, config, slots):
    program = compiled(function, config)
    row = (config.num_kv_caches, B, config.num_kv_heads, 1, config.head_dim)
    tail = (*row[:3], slots, row[4])
    written = written_bytes(
        program, tail[1:] if function in (text_unrolled, thoughts_unrolled) else tail
    )
    row_bytes = 4 * jnp.zeros(row).size
    if function is handed_on:
        assert written >= slots * row_bytes
    elif function is refilled:  # a loop over rows, each of which has a slot of its own
        assert written == 2 * row_bytes / B
    else:
        assert written == 2 * row_bytes


@pytest.mark.parametrize("function", [text_unrolled, thoughts_unrolled, swept_unrolled, sliced])
def test_a_step_of_unrolled_layers_takes_no_cache_out_of_a_stack(function):
    config = CONFIGS["solver"]
    one_layer = (B, config.num_kv_heads, P, config.head_dim)
    made = [
        x.opcode
        for shape in (one_layer, (1, *one_layer))
        for _, x in in_loops(compiled(function, config), shape)
        if x.opcode not in ("parameter", "get-tuple-element", "bitcast")
    ]
    assert bool(made) == (function is sliced), made


@pytest.mark.parametrize("function", [thoughts, swept, text])
def test_unrolled_layers_think_and_write_the_same(function):
    agent = random_agent(CONFIGS["solver"], seed=0)
    embeds = jax.random.normal(jax.random.key(1), (B, P, agent.config.width))
    hidden, cache = agent.read(embeds, jnp.arange(P)[None] >= jnp.arange(B)[:, None])
    cache = agent.seal(cache, 0)

    def scalar(hidden, agent):
        return (function(agent, hidden, cache) ** 2).sum()

    found = [function(each, hidden[:, -1], cache) for each in (agent, agent.unrolled())]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    if function is not text:
        found = [jax.grad(scalar)(hidden[:, -1], each) for each in (agent, agent.unrolled())]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
