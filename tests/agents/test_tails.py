"""Single steps write the new keys and values into a tail in place, and no others."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from systems import CONFIGS, LINEAR

from rmas_jax.agents import pool
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sampling import GREEDY, speak
from rmas_jax.agents.thinking import think
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


def refilled(agent, hidden, cache):
    begun = pool.begin(agent, hidden, cache, sampling=GREEDY, **ENDS)
    rows = pool.empty_pool(agent.decoder, begun)
    return pool.run(agent, rows, jnp.int32(B), sampling=GREEDY, **ENDS).begun.text.tokens


def handed_on(agent, hidden, cache):
    """The control: every layer takes its part of the tail, writes, and hands it on."""
    tail = agent.with_room(cache, STEPS).tail.keys

    def layer(x, keys):
        keys = jax.lax.dynamic_update_slice_in_dim(keys, keys[:, :, :1] + x, 0, axis=2)
        return x + keys.sum(), keys

    def step(carry, _):
        return jax.lax.scan(layer, *carry), None

    return jax.lax.scan(step, (hidden.sum(), tail), None, STEPS)[0]


def written_bytes(program, shape):
    """Bytes of an array of this shape that one step writes, over all loops."""
    module = parse(program)
    found = 0
    for name, computation in module.computations.items():
        for x in computation.instructions.values():
            if name == module.entry or not x.shapes or x.shapes[0].sizes != shape:
                continue
            if x.opcode == "copy":
                found += x.bytes
            elif x.opcode == "dynamic-update-slice":
                found += computation.operand(x, 1).bytes
    return found


@pytest.mark.parametrize(
    ("function", "config", "slots"),
    [
        (text, CONFIGS["solver"], STEPS),
        (thoughts, LINEAR, STEPS),
        (text, LOOPED, STEPS),
        (text_unrolled, CONFIGS["solver"], STEPS),
        (refilled, CONFIGS["planner"], STEPS - 1),
        (handed_on, CONFIGS["planner"], STEPS),
    ],
    ids=[
        "text",
        "thoughts, linear layers",
        "text, two loops",
        "text, unrolled",
        "pool",
        "the control",
    ],
)
def test_a_step_writes_one_row_of_a_tail(function, config, slots):
    agent = Agent(*abstract_agent(config))
    hidden = jax.ShapeDtypeStruct((B, config.width), jnp.float32)
    cache = jax.eval_shape(lambda: agent.seal(agent.empty_cache(B, P), 0))
    program = jax.jit(functools.partial(function)).lower(agent, hidden, cache).compile().as_text()
    row = (config.num_kv_caches, B, config.num_kv_heads, 1, config.head_dim)
    tail = (*row[:3], slots, row[4])
    written = written_bytes(program, tail)
    row_bytes = 4 * jnp.zeros(row).size
    if function is handed_on:
        assert written >= slots * row_bytes
    else:
        assert written == 2 * row_bytes
