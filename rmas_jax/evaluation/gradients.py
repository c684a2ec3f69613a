"""Norm of the answer's gradient at each edge in each round: latents against soft text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.host.nonfinite import first_fault, gradient_fault
from rmas_jax.links import Links
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.channels import CHANNELS, LATENT, SOFTMAX, Channel, SelectChannel
from rmas_jax.rounds.recursion import Unroll, crossing_probes, run_rounds
from rmas_jax.rounds.supervision import Supervision, Targets
from rmas_jax.sharding import put_batch, put_whole, to_host
from rmas_jax.team import Team
from rmas_jax.topology import System, edge_name

COMPARED = (LATENT, SOFTMAX)  # channels


@functools.partial(jax.jit, static_argnames=("system", "rounds"))
def _norms(
    system: System,
    agents: Mapping[str, Agent],
    channels: tuple[Channel, ...],
    prompts: Mapping[str, StagePrompt],
    target: Targets,
    is_first: jax.Array,
    *,
    rounds: int,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Edge name -> [R] root mean square, over items, of the gradient at the edge's vectors.

    Also `Rounds.finite`.

    The choice of channel is traced, so that one program serves both: compilation dominates.
    """
    channel = SelectChannel(is_first, *channels)
    answerer = system.topology.answerer

    def loss(probes: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = run_rounds(
            system,
            agents,
            channel,
            prompts,
            Unroll(rounds=rounds),
            Supervision({answerer: target}),
            probes=probes,
        )
        return out.scores[answerer].loss[-1].sum(), out.finite

    probes = crossing_probes(system, rounds=rounds, batch=len(target.ids))
    gradients, finite = jax.grad(loss, has_aux=True)(probes)
    norms = {
        name: jnp.sqrt(jnp.square(gradient).sum((2, 3)).mean(1))
        for name, gradient in gradients.items()
    }
    return norms, finite


def gradient_norms(
    team: Team, links: Links, prompts: Mapping[str, StagePrompt], target: Targets, *, rounds: int
) -> list[dict[str, Any]]:
    """Gradient of the answer's cross-entropy at the vectors of every edge, for both channels.

    The loss is the cross-entropy of the answerer's target in the last round, a mean over an item's
    tokens and a sum over items, so that items do not share a scale. The result is the root mean
    square of the items' norms, in float32.

    Args:
      team: the system, its agents, tokenizers and prompts.
      links: parameters of the links, for the latent channel.
      prompts: by role, batch B, with M vectors per slot.
      target: the answerer's texts [B, R, W]; only the last round's counts.
      rounds: R.

    Returns:
      Rows of `gradients.json`: link (edge name), round (from 1, in which the vectors are sent),
      channel (of `COMPARED`) and norm. The last round's feedback reaches no answer and has
      no row.

    Raises:
      NonFiniteError: an agent's numbers or gradients are NaN or infinite.
    """
    topology = team.system.topology
    links = put_whole(links, team.mesh)
    channels = tuple(CHANNELS[name].make(team.system, links, team.members) for name in COMPARED)
    prompts, target = put_batch((prompts, target), team.mesh)
    arguments = (team.agents, channels, prompts, target)
    # It runs twice: optimised compilation would take much longer than running.
    quickly: dict[str, Any] = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    lowered = _norms.lower(team.system, *arguments, True, rounds=rounds)
    norms_of = lowered.compile(quickly)
    rows = []
    for channel in COMPARED:
        norms, finite = to_host(norms_of(*arguments, channel == COMPARED[0]))
        within = f"gradient norms, {channel} channel"
        if fault := first_fault(topology.order, finite):
            raise fault.error().inside(within)
        if lost := gradient_fault(topology.order, topology.edges, norms):
            raise lost.inside(within)
        for edge in topology.edges:
            name = edge_name(edge)
            reached = rounds - (edge in topology.feedback_edges)
            rows += [
                {"link": name, "round": i + 1, "channel": channel, "norm": float(norm)}
                for i, norm in enumerate(norms[name].astype(np.float32)[:reached])
            ]
    return rows
