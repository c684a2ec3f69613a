"""Filling a pool's rows on a mesh: what each device computes, and what passes between devices."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from counted import CONFIG
from placed import placed
from systems import random_params

from rmas_jax.agents import pool
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_prefix
from rmas_jax.models import Decoder
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.partition import Policies
from rmas_jax.planning.hlo import program_cost
from rmas_jax.planning.programs import tree_bytes
from rmas_jax.sharding import abstract_batch, make_mesh, with_shardings

ROWS, PREFIX, BODY, TEXT = 16, 48, 16, 8


def costs(devices):
    """Costs on each device by program, and the bytes of all prompts' caches."""
    mesh = make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
    config = dataclasses.replace(CONFIG, num_layers=2)
    agent = placed(Agent(Decoder(config), random_params(config, 0)), mesh, Policies())
    found = {}

    def compiled(name, jitted, *args, **options):
        program = jitted.lower(*args, **options).compile()
        found[name] = program_cost(program.as_text())
        return with_shardings(program.out_info, program.output_shardings)

    def tokens(width):
        shape = ROWS, width
        return abstract_batch((np.zeros(shape, np.int32), np.zeros(shape, bool)), mesh)

    prefix = compiled("prefix", jax.jit(read_prefix), agent, *tokens(PREFIX))
    received = abstract_batch(np.zeros((ROWS, 0, config.width), np.float32), mesh)
    prompt = PromptInput(prefix, *tokens(BODY), received, (-1,) * BODY)
    read = compiled("body", pool.read_prompts, agent, prompt)
    settings = {"end_tokens": (3,), "max_tokens": TEXT, "sampling": SamplingConfig()}
    begun = compiled("first token", pool.begin, agent, *read, **settings)
    rows = jax.ShapeDtypeStruct((pool.filled_at_once(ROWS),), np.int32)
    empty = pool.pool_shapes(agent.decoder, begun)
    compiled("fill", pool.fill, agent.decoder, empty, begun, rows, rows)
    return found, devices * tree_bytes(begun.past)


def test_a_device_reads_its_own_prompts_and_receives_the_new_rows_alone():
    one, _ = costs(1)
    found, caches = costs(8)
    for name in ("prefix", "body", "first token"):
        assert math.isclose(8 * found[name].flops, one[name].flops, rel_tol=0.01), name
    assert found["fill"].flops == 0
    # A sum over devices of the new rows, an eighth of all; the whole batch would be four times it.
    new = caches * pool.filled_at_once(ROWS) / ROWS
    assert 2 * new * 7 / 8 <= found["fill"].link_bytes < 1.1 * 2 * new * 7 / 8 < caches / 2
