"""A round of agents as the body of one `lax.scan`, over a differentiable channel.

    question --> [planner] --> [critic] --> [solver] --> feedback to the next round's planner
                  read, think, send           `--> writes in the last round

All differences between rounds enter as scanned data, so any number of rounds compiles one body.
Prefixes are read before the scan and closed over; the carry is the feedback alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_prefix
from rmas_jax.agents.sampling import GREEDY, DecodeState
from rmas_jax.agents.sweeps import Before, relative_change
from rmas_jax.agents.writing import write
from rmas_jax.models import Cache
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.interventions import Intervention
from rmas_jax.rounds.stages import (
    Stages,
    arrivals,
    begin,
    check_prompts,
    deliver,
    no_feedback,
    no_thoughts,
    nothing_received,
    present,
    prompt_input,
    rows_finite,
    scored_turn,
    think_turn,
)
from rmas_jax.rounds.supervision import NO_SUPERVISION, Supervision, Targets, TextScore
from rmas_jax.topology import System, edge_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unroll:
    """How rounds are unrolled for a gradient; static."""

    rounds: int  # R, at least 1
    remat: bool = False  # recompute a round in the backward pass instead of storing it
    recompute_thoughts: bool = True  # recompute the steps of a rollout, too; see `think`
    # Length of truncated backpropagation, in rounds: after each such number, counted from the last
    # round, feedback enters without a gradient. None: no truncation.
    truncate_rounds: int | None = None
    truncate_steps: int | None = None  # the same for the thoughts of a rollout, see `think`


class Rounds(struct.PyTreeNode):
    """Results of all rounds."""

    received: jax.Array  # [R, B, S, D] vectors that reached the answerer's slots in each round
    scores: dict[str, TextScore]  # scored role -> [R, B]; 0 in rounds in which it has no loss
    thoughts: dict[str, jax.Array]  # role with a target -> [R, B, M, D], with `keep_thoughts`
    change: jax.Array  # [R, B] relative change of `received` since the previous round; round 1: 1
    finite: jax.Array  # [R, B, N] bool, by role in order; thoughts, sent vectors, loss are finite
    sweeps: jax.Array | None = None  # [R, B, N] int32 of parallel thinking, by role in order


class RoundOut(struct.PyTreeNode):
    """Results of one round, beside its feedback."""

    received: jax.Array  # [B, S, D]
    scores: dict[str, TextScore]  # by scored role, [B]
    thoughts: dict[str, jax.Array]  # by role with a target, [B, M, D], with `keep_thoughts`
    finite: jax.Array  # [B, N] bool
    sweeps: jax.Array | None  # [B, N] int32


class Outcome(struct.PyTreeNode):
    """The answerer's input after the latent rounds."""

    prompt: PromptInput  # the answerer's
    took: jax.Array  # [B] int32; number of rounds of each item
    fault: jax.Array  # [B] int32; index of the first stage that was not finite, -1: none
    sweeps: jax.Array | None = None  # [B, N] int32 of parallel thinking, over all rounds, by role


def run_rounds(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    unroll: Unroll,
    supervision: Supervision = NO_SUPERVISION,
    *,
    prefixes: Mapping[str, Cache] | None = None,
    probes: Mapping[str, jax.Array] | None = None,
) -> Rounds:
    """Runs rounds of latent collaboration as one `lax.scan` (paper eq. 2, algorithm 1).

    Args:
      system: topology and link variants (static).
      agents: by role.
      channel: how thoughts return and travel.
      prompts: by role, batch B, with slots of M positions.
      unroll: number of rounds, and truncation of gradients.
      supervision: target texts of roles.
      prefixes: from `read_prefixes`; None: read here.
      probes: edge name -> [R, B, M, D'], added to the vectors that cross an edge; zeros, whose
        gradient is the gradient at each slot in each round.

    Raises:
      ValueError: fewer than one round; teacher forcing without a long enough text of every role;
        see also `check_prompts`.
    """
    check_prompts(system, agents, prompts, supervision.targets)
    _check_unrolled(system, unroll, supervision)
    rounds = unroll.rounds
    if system.latent_steps == 0:
        return _nothing_passed(system, agents, prompts, rounds)
    stages = begin(
        system,
        agents,
        channel,
        prompts,
        prefixes,
        truncate_steps=unroll.truncate_steps,
        recompute=unroll.recompute_thoughts,
    )
    targets, scored = dict(supervision.targets), supervision.scored
    if scored is None:
        scored = FrozenDict(dict.fromkeys(targets, (True,) * rounds))
    if not (supervision.teacher_forced or supervision.keep_thoughts):
        targets = {role: target for role, target in targets.items() if role in scored}
    # Choices common to all rounds are static, the others traced.
    always = {role: of_role[0] for role, of_role in scored.items() if len(set(of_role)) == 1}
    at_times = {role: jnp.asarray(scored[role]) for role in scored.keys() - always.keys()}

    def body(carry: Any, scanned: Any) -> tuple[Any, RoundOut]:
        feedback, before = carry
        index, targets, probes, scored_now = scanned
        if unroll.truncate_rounds is not None:
            is_cut = (rounds - index) % unroll.truncate_rounds == 0
            feedback = jax.tree.map(
                lambda x: jnp.where(is_cut, jax.lax.stop_gradient(x), x), feedback
            )
        return _round(
            stages,
            (feedback, before),
            supervision.replace(targets=targets),
            index=index,
            is_last=index == rounds - 1,
            scored=always | scored_now,
            probes=probes,
        )

    by_round = jax.tree.map(lambda x: jnp.moveaxis(x[:, :rounds], 1, 0), targets)
    scanned = (jnp.arange(rounds), by_round, dict(probes or {}), at_times)
    step = jax.checkpoint(body, prevent_cse=False) if unroll.remat else body
    start = no_feedback(system, agents, prompts), no_thoughts(system, agents, prompts)
    _, out = jax.lax.scan(step, start, scanned)
    before = jnp.concatenate([jnp.zeros_like(out.received[:1]), out.received[:-1]])
    change = relative_change(before, out.received)
    return Rounds(out.received, out.scores, out.thoughts, change, out.finite, out.sweeps)


def _check_unrolled(system: System, unroll: Unroll, supervision: Supervision) -> None:
    if unroll.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {unroll.rounds}")
    if supervision.teacher_forced:
        widths = {role: target.ids.shape[-1] for role, target in supervision.targets.items()}
        order, steps = system.topology.order, system.latent_steps
        if short := [role for role in order if widths.get(role, -1) < steps]:
            raise ValueError(
                f"teacher_forced: texts of {short} must have at least latent_steps={steps} tokens, "
                f"got {[widths.get(role) for role in short]}"
            )


def _nothing_passed(
    system: System, agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt], rounds: int
) -> Rounds:
    """Rounds without thoughts, `latent_steps=0`."""
    received = nothing_received(system, agents, prompts)
    received = jnp.broadcast_to(received, (rounds, *received.shape))
    batch = received.shape[:2]
    finite = jnp.ones((*batch, len(system.topology.order)), bool)
    return Rounds(received, {}, {}, jnp.zeros(batch), finite)


def crossing_probes(system: System, *, rounds: int, batch: int) -> dict[str, jax.Array]:
    """Zeros [R, B, M, D'] for `probes`, by edge name."""
    return {
        edge_name(edge): jnp.zeros((rounds, batch, system.latent_steps, system.width(edge[1])))
        for edge in system.topology.edges
    }


def listen(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: jax.Array | int,
    tolerance: jax.Array | float = 0.0,
    prefixes: Mapping[str, Cache] | None = None,
    intervention: Intervention | None = None,
) -> Outcome:
    """R rounds of thoughts, up to the answerer's input in the last one.

    The number of rounds is traced: one compiled program serves all. `run_rounds` gives the same
    vectors, of every round and with gradients, for a static number of rounds.

    Args:
      system: topology and link variants (static).
      agents: by role.
      channel: how thoughts return and travel.
      prompts: by role, batch B, with slots of M positions.
      rounds: R, at least 1.
      tolerance: [] or [B]; stops an item once its `Rounds.change` falls below this, independently
        of its batch; 0 disables early stopping.
      prefixes: from `read_prefixes`; None: read here.
      intervention: replaces messages of the first R rounds or more; early stopping must be off.

    Raises:
      ValueError: see `check_prompts`.
    """
    check_prompts(system, agents, prompts)
    role = system.topology.answerer
    prompt, agent = prompts[role], agents[role]
    batch, steps = prompt.body_ids.shape[0], system.latent_steps
    rounds = jnp.asarray(rounds, jnp.int32)
    if steps == 0:
        if prefixes is None:
            prefix = read_prefix(agent, prompt.prefix_ids, prompt.prefix_valid)
        else:
            prefix = prefixes[role]
        received = nothing_received(system, agents, prompts)
        took = jnp.broadcast_to(rounds, (batch,))
        fault, sweeps = jnp.full(batch, -1, jnp.int32), None
    else:
        stages = begin(system, agents, channel, prompts, prefixes, intervention=intervention)
        prefix = stages.prefixes[role]

        def unfinished(carry: Any) -> jax.Array:
            index, _, _, active, *_ = carry
            return (index < rounds) & jnp.any(active)

        def body(carry: Any) -> Any:
            index, left, before, active, took, fault, sweeps = carry
            left, out = _round(stages, left, index=index, is_last=index == rounds - 1)
            settled = (index > 0) & (relative_change(before, out.received) < tolerance)
            received = jnp.where(active[:, None, None], out.received, before)
            breaks = (fault < 0) & active & ~out.finite.all(axis=1)
            stage = index * out.finite.shape[1] + jnp.argmin(out.finite, axis=1)
            fault = jnp.where(breaks, stage, fault)
            # An item that has stopped takes no part.
            made = None if sweeps is None else sweeps + out.sweeps * active[:, None]
            return index + 1, left, received, active & ~settled, took + active, fault, made

        slots = len(prompt.senders) * steps
        start = (
            jnp.zeros((), jnp.int32),
            (no_feedback(system, agents, prompts), no_thoughts(system, agents, prompts)),
            jnp.zeros((batch, slots, agent.width), agent.dtype),
            jnp.ones(batch, bool),
            jnp.zeros(batch, jnp.int32),
            jnp.full(batch, -1, jnp.int32),
            None if system.sweeps is None else jnp.zeros((batch, len(agents)), jnp.int32),
        )
        _, _, received, _, took, fault, sweeps = jax.lax.while_loop(unfinished, body, start)
    # No item stops after the first of several rounds, so all read the same kind of prompt.
    kind = jnp.where(rounds == 1, FIRST, LATER)
    there = None
    if intervention is not None and steps:
        there = intervention.present(prompt, role, index=rounds - 1)
    read = prompt_input(prompt, prefix, received, kind=kind, present=there)
    return Outcome(read, took, fault, sweeps)


def _round(
    stages: Stages,
    left: tuple[dict[str, jax.Array], dict[str, jax.Array]],
    supervision: Supervision = NO_SUPERVISION,
    *,
    index: jax.Array,
    is_last: jax.Array,
    scored: Mapping[str, jax.Array | bool] | None = None,
    probes: Mapping[str, jax.Array] | None = None,
) -> tuple[tuple[dict[str, jax.Array], dict[str, jax.Array]], RoundOut]:
    """All stages in order, from what the previous round has left to what this one leaves.

    Args:
      stages: the system.
      left: feedback by edge name, [B, M, D'], and thoughts by role, see `no_thoughts`.
      supervision: its targets are the texts of this round, [B, W].
      index: [] int32; number of the round, from 0.
      is_last: [] bool.
      scored: role with a target -> whether its text has a loss in this round.
      probes: edge name -> [B, M, D'], see `run_rounds`.
    """
    topology, scored = stages.system.topology, scored or {}
    kind = jnp.where(index == 0, FIRST, LATER)
    feedback, made = left[0], dict(left[1])
    inbox, scores, thoughts, finite, sweeps = dict(feedback), {}, {}, [], []
    for role in topology.order:
        arrived = arrivals(stages, inbox, role, index=index)
        is_answerer = role == topology.answerer
        target: Targets | None = supervision.targets.get(role)
        before = Before(made[role], index > 0) if role in made else None
        if target is None:
            # In the last round the answerer writes, and its thoughts have no receiver.
            is_needed = not is_answerer or ~is_last
            turn = think_turn(
                stages,
                role,
                arrived,
                kind=kind,
                is_needed=is_needed,
                present=present(stages, role, index=index),
                before=before,
            )
        else:
            turn = scored_turn(
                stages,
                role,
                arrived,
                target,
                kind=kind,
                is_scored=scored.get(role, False),
                is_forced=supervision.forces(role, is_answerer=is_answerer),
                before=before,
            )
            if supervision.keep_thoughts:
                thoughts[role] = turn.thoughts
        if turn.score is not None:
            scores[role] = turn.score
        if before is not None:
            made[role] = jax.lax.stop_gradient(turn.thoughts)
        if turn.sweeps is not None:
            sweeps.append(turn.sweeps)
        sent = deliver(stages, role, turn.thoughts, probes=probes)
        inbox |= sent
        losses = [] if turn.score is None else [turn.score.loss]
        finite.append(rows_finite(turn.thoughts, *sent.values(), *losses))
    feedback = {name: inbox[name] for name in feedback}
    taken = jnp.stack(sweeps, axis=1) if sweeps else None
    out = RoundOut(arrived, scores, thoughts, jnp.stack(finite, axis=1), taken)
    return (feedback, made), out


def solve(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: jax.Array | int,
    end_tokens: tuple[int, ...],
    max_tokens: int,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
) -> DecodeState:
    """Question to answer tokens on the device: R rounds of thoughts, then the answerer's text.

    R is traced, so one program serves any number of rounds (at least 1). `sampling` and `keys` are
    those of `sampling.speak`. `DecodeState.finite` covers the rounds, too.
    """
    outcome = listen(system, agents, channel, prompts, rounds=rounds)
    state = write(
        agents[system.topology.answerer],
        outcome.prompt,
        end_tokens=end_tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=keys,
    )
    return state.replace(finite=state.finite & (outcome.fault < 0))
