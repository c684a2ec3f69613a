"""Latent rounds that continue from fewer rounds, with the same numbers as from the start.

    round 1                     round 2
    planner  critic  |  solver  planner  critic  |  solver  ...
                     1 round                     2 rounds: the solver has received, and answers

The answerer's thoughts, which a further round alone needs, are the first turn of that round. One
body of one program runs every round, wherever the rounds are split.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.rounds.stages import (
    Stages,
    arrivals,
    deliver,
    no_feedback,
    rows_finite,
    think_turn,
)
from rmas_jax.topology import System


class Progress(struct.PyTreeNode):
    """The state between two rounds: the answerer has received, and has not thought."""

    rounds: jax.Array  # [] int32; rounds so far
    feedback: dict[str, jax.Array]  # edge name -> [B, M, D']; the answerer's is of the round before
    received: jax.Array  # [B, S, D] in the answerer's slots
    fault: jax.Array  # [B] int32; index of the first stage that was not finite, -1: none


def no_progress(
    system: System, agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt]
) -> Progress:
    """The state before the first round of B prompts."""
    role = system.topology.answerer
    prompt, agent = prompts[role], agents[role]
    batch, slots = len(prompt.body_ids), len(prompt.senders) * system.latent_steps
    start = Progress(
        rounds=jnp.zeros((), jnp.int32),
        feedback=no_feedback(system, agents, prompts),
        received=jnp.zeros((batch, slots, agent.width), agent.dtype),
        fault=jnp.full(batch, -1, jnp.int32),
    )
    return _placed(start, agent)


def advance(stages: Stages, before: Progress, *, rounds: jax.Array | int) -> Progress:
    """Continues to R rounds; R is traced. `recursion.listen` gives the same vectors.

    Args:
      stages: the system, with M of at least 1 and without an intervention.
      before: of at most R rounds.
      rounds: R.
    """
    topology, answerer = stages.system.topology, stages.system.topology.answerer
    rounds = jnp.asarray(rounds, jnp.int32)

    def turn(
        role: str, arrived: jax.Array, kind: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """What a role sends, and whether all of it is finite [B]."""
        thoughts = think_turn(stages, role, arrived, kind=kind)
        sent = deliver(stages, role, thoughts)
        return sent, rows_finite(thoughts, *sent.values())

    def answerer_turn(at: Progress) -> tuple[dict[str, jax.Array], jax.Array]:
        sent, is_finite = turn(answerer, at.received, jnp.where(at.rounds == 1, FIRST, LATER))
        return {**at.feedback, **sent}, is_finite

    def first_round(at: Progress) -> tuple[dict[str, jax.Array], jax.Array]:
        return at.feedback, jnp.ones(at.fault.shape, bool)

    def body(at: Progress) -> Progress:
        inbox, is_finite = jax.lax.cond(at.rounds > 0, answerer_turn, first_round, at)
        finite = [is_finite]
        for role in topology.order[:-1]:
            arrived = arrivals(stages, inbox, role, index=at.rounds)
            sent, is_finite = turn(role, arrived, jnp.where(at.rounds == 0, FIRST, LATER))
            inbox = {**inbox, **sent}
            finite.append(is_finite)
        in_round = jnp.stack(finite, axis=1)  # [B, N], from the answerer's turn on
        stage = at.rounds * len(topology.order) - 1 + jnp.argmin(in_round, axis=1)
        after = Progress(
            rounds=at.rounds + 1,
            feedback={name: inbox[name] for name in at.feedback},
            received=arrivals(stages, inbox, answerer, index=at.rounds),
            fault=jnp.where((at.fault < 0) & ~in_round.all(axis=1), stage, at.fault),
        )
        return _placed(after, stages.agents[answerer])

    return jax.lax.while_loop(lambda at: at.rounds < rounds, body, before)


def _placed(progress: Progress, agent: Agent) -> Progress:
    """The same with rows where those of the batch lie; `deliver` places feedback."""
    received = agent.partition.constrain(progress.received, "batch", None, None)
    return progress.replace(
        received=received, fault=agent.partition.constrain(progress.fault, "batch")
    )
