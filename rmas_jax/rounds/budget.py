"""Model FLOPs before an answer, per item: prompts read, thoughts made, vectors sent.

    prefix    | body, M - 1 thoughts fed back | body, M - 1 thoughts fed back | ... | the answer
    each role   each role's turn, round 1       round 2                             `Texts.flops`

Useful work alone counts, see `models.flops`. Texts count where they are written (`Texts.flops`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.links import link_flops
from rmas_jax.models.flops import read_flops
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.topology import System, edge_name


def prefix_flops(
    agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt], roles: Iterable[str]
) -> np.ndarray:
    """FLOPs [B] of reading the prefixes of roles, once each."""
    return np.sum(
        [read_flops(agents[role].config, _prefix(agents[role], prompts[role])) for role in roles],
        axis=0,
    )


def latent_flops(
    system: System,
    agents: Mapping[str, Agent],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
) -> np.ndarray:
    """FLOPs [B] of R latent rounds, up to the answerer's body in the last one.

    A link counts for each thought that passes it and is used: the inner one for thoughts that are
    fed back or sent, an outer one for messages that arrive. The links alone count, whatever channel
    replaces them. Without thoughts, nothing but the answerer's prefix is read.

    Args:
      system: with M thoughts per turn.
      agents: by role.
      prompts: by role, batch B, as numpy arrays.
      rounds: R.
    """
    topology, steps = system.topology, system.latent_steps
    if not steps:
        return prefix_flops(agents, prompts, [topology.answerer])
    total = prefix_flops(agents, prompts, topology.order)
    sent_through_inner = system.sent_vectors == "outer_of_inner"
    kinds = [FIRST, *[LATER] * (rounds - 1)]
    for role in topology.order:
        turns = kinds[:-1] if role == topology.answerer else kinds  # in the last round it answers
        bodies = prompts[role].body_valid.sum(axis=-1)  # [B, 2]
        for kind in turns:
            total = total + read_flops(
                agents[role].config,
                bodies[:, kind] + steps - 1,
                _prefix(agents[role], prompts[role]),
            )
        through_inner = steps if sent_through_inner else steps - 1
        total = total + len(turns) * through_inner * link_flops(system.inner[role])
    for edge in topology.edges:
        arrivals = rounds - (edge in topology.feedback_edges)
        total = total + arrivals * steps * link_flops(system.outer[edge_name(edge)])
    return total


def _prefix(agent: Agent, prompt: StagePrompt) -> np.ndarray:
    """Real positions [B] of a prompt's prefix, behind the agent's soft prompt."""
    # A batch reads the soft prompt once; counted for each item, as for a batch of one.
    soft = 0 if agent.soft_prompt is None else len(agent.soft_prompt)
    return soft + np.asarray(prompt.prefix_valid).sum(axis=-1)
