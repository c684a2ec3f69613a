"""Shapes of what the programs of a run have in common, and the bytes of caches."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from rmas_jax.links import LinkConfig, Links, init_link
from rmas_jax.planning.bounds import cache_bytes, widths
from rmas_jax.prompts import StagePrompt
from rmas_jax.sharding import batch_shards, replicated, with_shardings
from rmas_jax.team import Team
from rmas_jax.topology import edge_name


def abstract_links(team: Team) -> Links:
    """Shapes of all links."""
    system = team.system
    return Links(
        inner={role: link_shape(link) for role, link in system.inner.items()},
        outer={edge_name(edge): link_shape(system.outer[edge_name(edge)])
               for edge in system.topology.edges},
    )  # fmt: skip


def replicated_on(team: Team) -> jax.sharding.Sharding | None:
    """A whole copy on every device of a team."""
    return None if team.mesh is None else replicated(team.mesh)


def link_shape(link: LinkConfig) -> Any:
    """Shapes of a link's parameters."""
    return jax.eval_shape(functools.partial(init_link, link), jax.random.key(0))


def on_sharding(sharding: jax.sharding.Sharding | None, tree: Any) -> Any:
    """Shapes with one sharding for all."""
    return with_shardings(tree, jax.tree.map(lambda _: sharding, tree))


def others(team: Team, role: str) -> Any:
    """The agents of the other roles."""
    return {other: agent for other, agent in team.agents.items() if other != role}


def caches_of(team: Team, prompts: Mapping[str, StagePrompt], *, has_prefixes: bool = True) -> int:
    """Bytes on each device: all prefixes, and the longest turn of an agent."""
    prefixes, turns = 0, [0]
    for role, prompt in prompts.items():
        rows, prefix, body = widths(prompt)
        prefixes += has_prefixes * cached_bytes(team, role, rows, prefix)
        turns.append(cached_bytes(team, role, rows, body + team.system.latent_steps))
    return prefixes + max(turns)


def cached_bytes(team: Team, role: str, rows: int, positions: int) -> int:
    """Bytes on each device of an agent's keys and values."""
    shards = batch_shards(team.mesh)
    return (
        -(-rows // (shards if rows % shards == 0 else 1))
        * positions
        * cache_bytes(team.agents[role])
    )
