"""A round of agents as the body of one `lax.scan`, over a differentiable channel.

    question --> [planner] --> [critic] --> [solver] --> feedback to the next round's planner
                  read, think, send           `--> speaks in the last round

Everything that differs between rounds enters as scanned data, so any number of rounds compiles one
body. Prefixes are read before the scan and closed over; the carry is the feedback alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.agent import PromptInput, read_prefix, write
from rmas_jax.agents.sampling import GREEDY, DecodeState
from rmas_jax.models import Cache
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.stages import (
    Targets,
    agent_dtype,
    arrivals,
    check_prompt_ids,
    deliver,
    no_feedback,
    nothing_received,
    read_prefixes,
    reading_of,
    rows_finite,
    take_turn,
)
from rmas_jax.topology import System, edge_name


@struct.dataclass
class Rounds:
    """What the rounds leave behind."""

    received: jax.Array  # [R, B, S, D] vectors that reached the answerer's slots in each round
    losses: dict[str, jax.Array]  # role with a target -> [R, B] mean cross-entropy of its text
    exact_match: dict[
        str, jax.Array
    ]  # role with a target -> [R, B] bool; greedy decoding would write it
    thoughts: dict[str, jax.Array]  # role with a target -> [R, B, M, D] what it thought
    change: jax.Array  # [R, B] relative change of those vectors since the round before; round 1: 1
    finite: jax.Array  # [R, B, N] bool; by role in order: its thoughts, what it sent, its loss are


@struct.dataclass
class Outcome:
    """What latent rounds leave to the answerer."""

    reading: PromptInput  # what it reads before it writes
    took: jax.Array  # [B] int32; rounds that each item went through
    fault: jax.Array  # [B] int32; number of the first stage that was not finite, -1: there is none


def run_rounds(
    system: System,
    agents: Any,
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    prefixes: Mapping[str, Cache] | None = None,
    targets: Mapping[str, Targets] | None = None,
    scored: Mapping[str, Sequence[bool]] | None = None,
    teacher_forced: bool = False,
    rollout_feedback: bool = False,
    probes: Mapping[str, jax.Array] | None = None,
    remat: bool = False,
    truncate_rounds: int | None = None,
    truncate_steps: int | None = None,
) -> Rounds:
    """Runs `rounds` rounds of latent collaboration as one `lax.scan`.

    Args:
      system: topology, decoders and link forms (static).
      agents: frozen parameters by role.
      channel: how thoughts return and travel.
      prompts: by role, batch B.
      rounds: R, at least 1.
      prefixes: from `read_prefixes`, if they were read before.
      targets: role -> texts; gives their losses. Needs W >= M when teacher-forced.
      scored: role -> for each round, whether its text has a loss; roles that are not here have
        none. Texts are then read only as far as these losses and teacher-forced thoughts need them:
        `losses` and `exact_match` are 0 in rounds that are not scored, and there are no `thoughts`.
        None: all texts in all rounds.
      teacher_forced: thoughts are the states over the role's target text instead of a rollout
        (upstream's outer loop, but starting at the last prompt token as inference does).
      rollout_feedback: with `teacher_forced`, the answerer's thoughts are a rollout all the same:
        what it feeds back has not seen its text.
      probes: edge name -> [R, B, M, D'], added to what crosses an edge; zeros whose gradient is
        the gradient that reaches each slot in each round.
      remat: recompute a round in the backward pass instead of storing it.
      truncate_rounds: rounds that the last round's gradient passes through, itself included; every
        so many rounds, counted from the last, feedback enters without a gradient. None: all.
      truncate_steps: the same for the thoughts of a rollout, see `agents.think`.
    """
    topology, steps = system.topology, system.latent_steps
    check_prompt_ids(system, prompts, targets)
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least 1")
    if teacher_forced:
        widths = {role: target.ids.shape[-1] for role, target in (targets or {}).items()}
        if short := [role for role in topology.order if widths.get(role, -1) < steps]:
            raise ValueError(
                f"teacher_forced: texts of {short} have {[widths.get(role) for role in short]} "
                f"tokens; every role needs at least latent_steps={steps}"
            )
    if steps == 0:
        received = nothing_received(system, agents, prompts)
        received = jnp.broadcast_to(received, (rounds, *received.shape))
        batch = received.shape[:2]
        return Rounds(
            received, {}, {}, {}, jnp.zeros(batch), jnp.ones((*batch, len(topology.order)), bool)
        )
    if prefixes is None:
        prefixes = read_prefixes(system, agents, prompts)
    # What all rounds have in common is decided here, the rest on the device.
    keep_thoughts = scored is None
    if scored is None:
        scored = dict.fromkeys(targets or {}, (True,) * rounds)
    always = {role: of_role[0] for role, of_role in scored.items() if len(set(of_role)) == 1}
    at_times = {role: jnp.asarray(scored[role]) for role in scored.keys() - always.keys()}
    one_round = functools.partial(_round, system, agents, channel, prompts, prefixes)

    def body(feedback, scanned):
        index, targets, probes, scored_now = scanned
        if truncate_rounds is not None:
            is_cut = (rounds - index) % truncate_rounds == 0
            feedback = jax.tree.map(
                lambda x: jnp.where(is_cut, jax.lax.stop_gradient(x), x), feedback
            )
        return one_round(
            feedback,
            index=index,
            is_last=index == rounds - 1,
            targets=targets,
            scored=always | scored_now,
            keep_thoughts=keep_thoughts,
            probes=probes,
            teacher_forced=teacher_forced,
            rollout_feedback=rollout_feedback,
            truncate_steps=truncate_steps,
        )

    by_round = jax.tree.map(lambda x: jnp.moveaxis(x[:, :rounds], 1, 0), dict(targets or {}))
    scanned = (jnp.arange(rounds), by_round, dict(probes or {}), at_times)
    step = jax.checkpoint(body, prevent_cse=False) if remat else body
    start = no_feedback(system, agents, prompts)
    _, (received, written, thoughts, finite) = jax.lax.scan(step, start, scanned)
    before = jnp.concatenate([jnp.zeros_like(received[:1]), received[:-1]])
    return Rounds(
        received=received,
        losses={role: loss for role, (loss, _) in written.items()},
        exact_match={role: match for role, (_, match) in written.items()},
        thoughts=thoughts,
        change=relative_change(before, received),
        finite=finite,
    )


def crossing_probes(system: System, *, rounds: int, batch: int) -> dict[str, jax.Array]:
    """Zeros [R, B, M, D'] for `probes`, by edge name."""
    return {
        edge_name(edge): jnp.zeros((rounds, batch, system.latent_steps, system.width(edge[1])))
        for edge in system.topology.edges
    }


def listen(
    system: System,
    agents: Any,
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: jax.Array | int,
    tolerance: jax.Array | float = 0.0,
) -> Outcome:
    """R rounds of thoughts, up to what the answerer reads before it writes.

    The number of rounds is data: one compiled program serves all. `run_rounds` gives the same
    vectors, of every round and with gradients, for a number of rounds that is static.

    Args:
      system: topology, decoders and link forms (static).
      agents: frozen parameters by role.
      channel: how thoughts return and travel.
      prompts: by role, batch B.
      rounds: R, at least 1.
      tolerance: an item whose `Rounds.change` falls below it goes through no further round,
        whatever stands beside it; 0 never stops early.
    """
    check_prompt_ids(system, prompts)
    role = system.topology.answerer
    prompt, params = prompts[role], agents[role]
    batch, steps = prompt.body_ids.shape[0], system.latent_steps
    rounds = jnp.asarray(rounds, jnp.int32)
    if steps == 0:
        prefix = read_prefix(system.models[role], params, prompt.prefix_ids, prompt.prefix_valid)
        received = nothing_received(system, agents, prompts)
        took = jnp.broadcast_to(rounds, (batch,))
        fault = jnp.full(batch, -1, jnp.int32)
    else:
        prefixes = read_prefixes(system, agents, prompts)
        prefix = prefixes[role]
        one_round = functools.partial(_round, system, agents, channel, prompts, prefixes)

        def going_on(carry):
            index, _, _, active, _, _ = carry
            return (index < rounds) & jnp.any(active)

        def body(carry):
            index, feedback, before, active, took, fault = carry
            is_last = index == rounds - 1
            feedback, (received, _, _, finite) = one_round(feedback, index=index, is_last=is_last)
            settled = (index > 0) & (relative_change(before, received) < tolerance)
            received = jnp.where(active[:, None, None], received, before)
            breaks = (fault < 0) & active & ~finite.all(axis=1)
            stage = index * finite.shape[1] + jnp.argmin(finite, axis=1)
            fault = jnp.where(breaks, stage, fault)
            return index + 1, feedback, received, active & ~settled, took + active, fault

        slots = len(prompt.senders) * steps
        start = (
            jnp.zeros((), jnp.int32),
            no_feedback(system, agents, prompts),
            jnp.zeros((batch, slots, system.width(role)), agent_dtype(params)),
            jnp.ones(batch, bool),
            jnp.zeros(batch, jnp.int32),
            jnp.full(batch, -1, jnp.int32),
        )
        _, _, received, _, took, fault = jax.lax.while_loop(going_on, body, start)
    # Nobody stops after the first of several rounds, so all read the same form.
    form = jnp.where(rounds == 1, FIRST, LATER)
    return Outcome(reading_of(prompt, prefix, received, form=form), took, fault)


def relative_change(before: jax.Array, received: jax.Array) -> jax.Array:
    """How far vectors [..., S, D] have moved, relative to their norm: [...] float32.

    Zeros that stay zeros have not moved.
    """
    # In float16, squares of vectors of ordinary size add up to infinity.
    before, received = before.astype(jnp.float32), received.astype(jnp.float32)
    moved = jnp.linalg.norm(received - before, axis=(-2, -1))
    size = jnp.linalg.norm(received, axis=(-2, -1))
    return jnp.where(moved == 0, 0.0, moved / size)


def _round(
    system: System,
    agents: Any,
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    prefixes: Mapping[str, Cache],
    feedback: dict[str, jax.Array],
    *,
    index: jax.Array,
    is_last: jax.Array,
    targets: Mapping[str, Targets] | None = None,
    scored: Mapping[str, jax.Array | bool] | None = None,
    keep_thoughts: bool = False,
    probes: Mapping[str, jax.Array] | None = None,
    teacher_forced: bool = False,
    rollout_feedback: bool = False,
    truncate_steps: int | None = None,
) -> tuple[dict[str, jax.Array], tuple[jax.Array, dict[str, Any], dict[str, Any], jax.Array]]:
    """All stages in order, from the feedback of the round before to that of this one.

    Args:
      scored: role with a target -> whether its text has a loss in this round.
      keep_thoughts: whether the thoughts of roles with a target are returned.
      (The others as in `run_rounds`, in this round.)

    Returns:
      The new feedback; what reached the answerer [B, S, D]; by scored role, its (loss [B],
      exact_match [B]); if they are kept, by role with a target its thoughts [B, M, D]; and, by role
      in order, whether its thoughts, what it sent and its loss are finite [B, N].
    """
    topology = system.topology
    targets, scored, probes = targets or {}, scored or {}, probes or {}
    form = jnp.where(index == 0, FIRST, LATER)

    inbox, written, thought, finite = dict(feedback), {}, {}, []
    for role in topology.order:
        arrived = arrivals(system, agents, prompts[role], inbox, role)
        is_answerer = role == topology.answerer
        thoughts, text = take_turn(
            system,
            agents,
            channel,
            prompts[role],
            prefixes[role],
            role,
            form=form,
            arrived=arrived,
            target=targets.get(role),
            is_scored=scored.get(role, False),
            teacher_forced=teacher_forced and not (rollout_feedback and is_answerer),
            # In the last round the answerer speaks: what it would send then is not needed.
            thinks=not is_answerer or ~is_last,
            truncate_steps=truncate_steps,
        )
        if text is not None:
            written[role] = text
        if keep_thoughts and role in targets:
            thought[role] = thoughts
        sent = deliver(system, agents, channel, role, thoughts, probes=probes)
        inbox |= sent
        finite.append(rows_finite(thoughts, *sent.values(), *(text or ())[:1]))
    feedback = {name: inbox[name] for name in feedback}
    return feedback, (arrived, written, thought, jnp.stack(finite, axis=1))


def solve(
    system: System,
    agents: Any,
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

    R is data, so what is compiled serves any number of rounds (at least 1). `sampling` and `keys`
    are those of `sampling.speak`. `DecodeState.finite` covers the rounds, too.
    """
    role = system.topology.answerer
    outcome = listen(system, agents, channel, prompts, rounds=rounds)
    speech = write(
        system.models[role],
        agents[role],
        outcome.reading,
        end_tokens=end_tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=keys,
    )
    return speech.replace(finite=speech.finite & (outcome.fault < 0))
