"""Agents of tests, on a mesh."""

from __future__ import annotations

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from rmas_jax.agents.agent import Agent
from rmas_jax.models.weights import weight_table
from rmas_jax.partition import Partition


def placed(agent, mesh, policies):
    """The agent with its weights split over a mesh."""
    params = flatten_dict(agent.params)
    for weight in weight_table(agent.config):
        params[weight.path] = jax.device_put(params[weight.path], weight.sharding(mesh))
    decoder = agent.decoder.clone(partition=Partition(mesh, policies))
    return Agent(decoder, unflatten_dict(params))
