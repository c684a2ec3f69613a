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
from rmas_jax.agents.sweeps import Before
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.rounds.stages import (
    Stages,
    arrivals,
    deliver,
    no_feedback,
    no_thoughts,
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
    thoughts: dict[str, jax.Array]  # by role, of its last turn, see `no_thoughts`
    sweeps: jax.Array | None  # [B, N] int32 of parallel thinking, by role in order


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
        thoughts=no_thoughts(system, agents, prompts),
        sweeps=None if system.sweeps is None else jnp.zeros((batch, len(agents)), jnp.int32),
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
        at: Progress, inbox: dict[str, jax.Array], role: str, index: jax.Array
    ) -> tuple[Progress, dict[str, jax.Array], jax.Array]:
        """The state and the inbox after a role's turn, and whether all of it is finite [B]."""
        arrived = at.received if role == answerer else arrivals(stages, inbox, role, index=index)
        before = Before(at.thoughts[role], index > 0) if role in at.thoughts else None
        made = think_turn(
            stages, role, arrived, kind=jnp.where(index == 0, FIRST, LATER), before=before
        )
        sent = deliver(stages, role, made.thoughts)
        if before is not None:
            at = at.replace(thoughts={**at.thoughts, role: made.thoughts})
        if made.sweeps is not None and at.sweeps is not None:
            place = topology.order.index(role)
            at = at.replace(sweeps=at.sweeps.at[:, place].add(made.sweeps))
        return at, {**inbox, **sent}, rows_finite(made.thoughts, *sent.values())

    def answerer_turn(at: Progress) -> tuple[Progress, dict[str, jax.Array], jax.Array]:
        return turn(at, at.feedback, answerer, at.rounds - 1)

    def first_round(at: Progress) -> tuple[Progress, dict[str, jax.Array], jax.Array]:
        return at, at.feedback, jnp.ones(at.fault.shape, bool)

    def body(at: Progress) -> Progress:
        at, inbox, is_finite = jax.lax.cond(at.rounds > 0, answerer_turn, first_round, at)
        finite = [is_finite]
        for role in topology.order[:-1]:
            at, inbox, is_finite = turn(at, inbox, role, at.rounds)
            finite.append(is_finite)
        in_round = jnp.stack(finite, axis=1)  # [B, N], from the answerer's turn on
        stage = at.rounds * len(topology.order) - 1 + jnp.argmin(in_round, axis=1)
        after = at.replace(
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
