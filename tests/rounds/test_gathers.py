"""What rounds gather between eight devices, counted in the compiled program."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from systems import CONFIGS, ROLE_PROMPTS, build_team_of

from rmas_jax.agents.agent import Agent
from rmas_jax.models import abstract_agent
from rmas_jax.models.weights import weight_table
from rmas_jax.partition import Policies
from rmas_jax.planning.hlo import program_cost
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import listen
from rmas_jax.sharding import abstract_batch, make_mesh
from rmas_jax.topology import load_topology


@pytest.fixture(scope="module")
def tiny():
    """Decoders whose widths divide, with one thought a turn: rounds read, and take no step."""
    configs = {
        role: dataclasses.replace(config, width=32, ffn_width=64)
        for role, config in CONFIGS.items()
    }
    return build_team_of(load_topology("sequential"), configs, ROLE_PROMPTS, 1)


def gathered(tiny, policy):
    """Bytes that a device receives in the all-gathers of one round, and of three."""
    mesh = make_mesh(fsdp=8)
    agents = {
        role: Agent(*abstract_agent(agent.config, mesh, policies=Policies(reading=policy)))
        for role, agent in tiny.agents.items()
    }

    def rounds(agents, prompts, rounds):
        channel = LatentChannel(tiny.system, tiny.links)
        return listen(tiny.system, agents, channel, prompts, rounds=rounds).prompt.received

    prompts = abstract_batch(tiny.prompts(["w"] * 8), mesh)
    count = jax.ShapeDtypeStruct((), np.int32)
    program = jax.jit(rounds).lower(agents, prompts, count).compile().as_text()
    return [program_cost(program, unknown_trips=trips).by_kind["all-gather"][1] for trips in (1, 3)]


def test_replicated_weights_are_gathered_once_for_all_rounds(tiny):
    layers = 4 * sum(
        math.prod(weight.shape)
        for agent in tiny.agents.values()
        for weight in weight_table(agent.config)
        if weight.is_stacked and len(weight.layer_shape) > 1
    )
    one, three = gathered(tiny, "replicate")
    assert one == pytest.approx(layers * 7 / 8, rel=0.02)
    assert three - one < 0.01 * one  # token ids
    # The control: where each layer is gathered at its use, every round gathers all of them again.
    one, three = gathered(tiny, "gather")
    assert three - one == pytest.approx(2 * layers * 7 / 8, rel=0.02)
