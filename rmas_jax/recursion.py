"""A round of agents as the body of one `lax.scan`, over a differentiable channel.

    question --> [planner] --> [critic] --> [solver] --> feedback to the next round's planner
                  read, think, send           `--> speaks in the last round

Everything that differs between rounds enters as scanned data, so any number of rounds compiles one
body. Prefixes are read before the scan and closed over; the carry is the feedback alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rmas_jax.agents import Reading, read_body, read_prefix, think, write
from rmas_jax.channels import Channel
from rmas_jax.models import Cache, Decoder
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.sampling import GREEDY, Speech
from rmas_jax.topology import System, edge_name

LOGITS_AT_ONCE = 2**26  # of a batch, [B, C, V] in float32: 256 MiB


@struct.dataclass
class Targets:
    """What one role should write in every round, for training."""

    ids: jax.Array  # [B, R, W] int32, padded on the right
    valid: jax.Array  # [B, R, W] bool


@struct.dataclass
class Rounds:
    """What the rounds leave behind."""

    received: jax.Array  # [R, B, S, D] vectors that reached the answerer's slots in each round
    losses: dict[str, jax.Array]  # role with a target -> [R, B] mean cross-entropy of its text
    right: dict[str, jax.Array]  # role with a target -> [R, B] bool; greedy decoding would write it
    thoughts: dict[str, jax.Array]  # role with a target -> [R, B, M, D] what it thought
    change: jax.Array  # [R, B] relative change of those vectors since the round before; round 1: 1


def read_prefixes(system: System, agents: Any, prompts: Mapping[str, StagePrompt]) -> dict:
    """Reads every role's prefix; the caches serve all rounds and the answer."""
    return {
        role: read_prefix(
            system.models[role], agents[role], prompts[role].prefix_ids, prompts[role].prefix_valid
        )
        for role in system.topology.order
    }


def text_states(
    system: System, agents: Any, role: str, hidden: jax.Array, cache: Cache, target: Targets
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reads a role's given text after its prompt.

    Returns:
      States [B, W, D] that predict each token of the text (the first is that of the last prompt
      token); the mean cross-entropy of the text [B]; whether greedy decoding writes it [B].
    """
    model, params = system.models[role], {"params": agents[role]}
    states = hidden[:, None]
    if target.ids.shape[1] > 1:
        embeds = model.apply(params, target.ids[:, :-1], method="embed")
        read, _ = model.apply(params, embeds, target.valid[:, :-1], cache)
        states = jnp.concatenate([states, read], axis=1)
    losses, hits = token_losses(model, agents[role], states, target.ids)
    losses = (losses * target.valid).sum(1) / target.valid.sum(1)
    return states, losses, jnp.all(hits | ~target.valid, axis=1)


def token_losses(
    model: Decoder, params: Any, states: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of tokens [B, W] under the states [B, W, D] before them, and greedy hits.

    At most `LOGITS_AT_ONCE` logits exist at a time, also in the backward pass: longer texts are
    scanned in chunks of positions, and a chunk's logits are computed again for its gradient.
    """
    batch, width = ids.shape
    chunk = min(width, max(1, LOGITS_AT_ONCE // (batch * model.config.vocab_size)))

    def of_chunk(_, scanned):
        states, ids = scanned
        logits = model.apply({"params": params}, states, method="unembed")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return None, (losses, jnp.argmax(logits, axis=-1) == ids)

    if chunk == width:
        return of_chunk(None, (states, ids))[1]
    count = -(-width // chunk)

    def split(x):  # [B, W, ...] -> [chunks, B, C, ...]
        padding = [(0, 0), (0, count * chunk - width)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, count, chunk, *x.shape[2:]).swapaxes(0, 1)

    of_chunk = jax.checkpoint(of_chunk, prevent_cse=False)
    _, out = jax.lax.scan(of_chunk, None, (split(states), split(ids)))
    return tuple(x.swapaxes(0, 1).reshape(batch, -1)[:, :width] for x in out)


def run_rounds(
    system: System,
    agents: Any,
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    prefixes: Mapping[str, Cache] | None = None,
    targets: Mapping[str, Targets] | None = None,
    teacher_forced: bool = False,
    rollout_feedback: bool = False,
    probes: Mapping[str, jax.Array] | None = None,
    remat: bool = False,
    truncate_rounds: int | None = None,
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
      teacher_forced: thoughts are the states over the role's target text instead of a rollout
        (upstream's outer loop, but starting at the last prompt token as inference does).
      rollout_feedback: with `teacher_forced`, the answerer's thoughts are a rollout all the same:
        what it feeds back has not seen its text.
      probes: edge name -> [R, B, M, D'], added to what crosses an edge; zeros whose gradient is
        the gradient that reaches each slot in each round.
      remat: recompute a round in the backward pass instead of storing it.
      truncate_rounds: rounds that the last round's gradient passes through, itself included; every
        so many rounds, counted from the last, feedback enters without a gradient. None: all.
    """
    topology, steps = system.topology, system.latent_steps
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
        return Rounds(received, {}, {}, {}, jnp.zeros(received.shape[:2]))
    if prefixes is None:
        prefixes = read_prefixes(system, agents, prompts)
    one_round = functools.partial(_round, system, agents, channel, prompts, prefixes)

    def body(feedback, scanned):
        index, targets, probes = scanned
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
            probes=probes,
            teacher_forced=teacher_forced,
            rollout_feedback=rollout_feedback,
        )

    by_round = jax.tree.map(lambda x: jnp.moveaxis(x[:, :rounds], 1, 0), dict(targets or {}))
    scanned = (jnp.arange(rounds), by_round, dict(probes or {}))
    step = jax.checkpoint(body, prevent_cse=False) if remat else body
    _, (received, written) = jax.lax.scan(step, no_feedback(system, agents, prompts), scanned)
    before = jnp.concatenate([jnp.zeros_like(received[:1]), received[:-1]])
    return Rounds(
        received=received,
        losses={role: loss for role, (loss, _, _) in written.items()},
        right={role: right for role, (_, right, _) in written.items()},
        thoughts={role: thoughts for role, (_, _, thoughts) in written.items()},
        change=relative_change(before, received),
    )


def listen(
    system: System,
    agents: Any,
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: jax.Array | int,
    tolerance: jax.Array | float = 0.0,
) -> tuple[Reading, jax.Array]:
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

    Returns:
      What the answerer reads, and the rounds that each item went through [B] int32.
    """
    role = system.topology.answerer
    prompt, params = prompts[role], agents[role]
    batch, steps = prompt.body_ids.shape[0], system.latent_steps
    rounds = jnp.asarray(rounds, jnp.int32)
    if steps == 0:
        prefix = read_prefix(system.models[role], params, prompt.prefix_ids, prompt.prefix_valid)
        received = nothing_received(system, agents, prompts)
        took = jnp.broadcast_to(rounds, (batch,))
    else:
        prefixes = read_prefixes(system, agents, prompts)
        prefix = prefixes[role]
        one_round = functools.partial(_round, system, agents, channel, prompts, prefixes)

        def going_on(carry):
            index, _, _, active, _ = carry
            return (index < rounds) & jnp.any(active)

        def body(carry):
            index, feedback, before, active, took = carry
            feedback, (received, _) = one_round(feedback, index=index, is_last=index == rounds - 1)
            settled = (index > 0) & (relative_change(before, received) < tolerance)
            received = jnp.where(active[:, None, None], received, before)
            return index + 1, feedback, received, active & ~settled, took + active

        slots = len(prompt.senders) * steps
        start = (
            jnp.zeros((), jnp.int32),
            no_feedback(system, agents, prompts),
            jnp.zeros((batch, slots, system.width(role)), _dtype(params)),
            jnp.ones(batch, bool),
            jnp.zeros(batch, jnp.int32),
        )
        _, _, received, _, took = jax.lax.while_loop(going_on, body, start)
    # Nobody stops after the first of several rounds, so all read the same form.
    return reading_of(prompt, prefix, received, form=jnp.where(rounds == 1, FIRST, LATER)), took


def reading_of(
    prompt: StagePrompt, prefix: Cache, received: jax.Array, *, form: jax.Array | int
) -> Reading:
    """A prompt in form FIRST or LATER with latents [B, S, D] in its slots."""
    return Reading(
        prefix=prefix,
        ids=jnp.take(prompt.body_ids, form, axis=1),
        valid=jnp.take(prompt.body_valid, form, axis=1),
        received=received,
        slot_index=prompt.slot_index,
    )


def relative_change(before: jax.Array, received: jax.Array) -> jax.Array:
    """How far vectors [..., S, D] have moved, relative to their norm: [...]."""
    moved = jnp.linalg.norm(received - before, axis=(-2, -1))
    return moved / jnp.linalg.norm(received, axis=(-2, -1))


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
    probes: Mapping[str, jax.Array] | None = None,
    teacher_forced: bool = False,
    rollout_feedback: bool = False,
) -> tuple[dict[str, jax.Array], tuple[jax.Array, dict[str, Any]]]:
    """All stages in order, from the feedback of the round before to that of this one.

    Returns:
      The new feedback, and what reached the answerer [B, S, D] with, by role with a target, its
      (loss [B], right [B], thoughts [B, M, D]).
    """
    topology = system.topology
    targets, probes = targets or {}, probes or {}
    form = jnp.where(index == 0, FIRST, LATER)

    def turn(role, arrived):
        return take_turn(
            system,
            agents,
            channel,
            prompts[role],
            prefixes[role],
            role,
            form=form,
            arrived=arrived,
            target=targets.get(role),
            teacher_forced=teacher_forced and not (rollout_feedback and role == topology.answerer),
        )

    inbox, written = dict(feedback), {}
    for role in topology.order:
        arrived = arrivals(system, agents, prompts[role], inbox, role)
        if role == topology.answerer and role not in targets:
            # In the last round the answerer speaks instead: what it would send is not needed.
            thoughts = jax.lax.cond(
                is_last,
                lambda x: jnp.zeros((x.shape[0], system.latent_steps, x.shape[2]), x.dtype),
                lambda x: turn(topology.answerer, x)[0],
                arrived,
            )
        else:
            thoughts, text = turn(role, arrived)
            if text is not None:
                written[role] = (*text, thoughts)
        inbox |= deliver(system, agents, channel, role, thoughts, probes=probes)
    return {name: inbox[name] for name in feedback}, (arrived, written)


def arrivals(
    system: System, agents: Any, prompt: StagePrompt, inbox: Mapping[str, jax.Array], role: str
) -> jax.Array:
    """What reaches a role's slots [B, S, D], from what crossed the edges last (by edge name).

    In the order of the slots in the prompt, which need not be that of the edges.
    """
    shape = prompt.body_ids.shape[0], 0, system.width(role)
    names = [edge_name((sender, role)) for sender in prompt.senders]
    nothing = jnp.zeros(shape, _dtype(agents[role]))
    return jnp.concatenate([nothing, *(inbox[name] for name in names)], axis=1)


def take_turn(
    system: System,
    agents: Any,
    channel: Channel,
    prompt: StagePrompt,
    prefix: Cache,
    role: str,
    *,
    form: jax.Array | int,
    arrived: jax.Array,
    target: Targets | None = None,
    teacher_forced: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """One stage: reads the prompt in form FIRST or LATER with what arrived [B, S, D], and thinks.

    Returns:
      Thoughts [B, M, D] and, with a target (of one round), the (loss [B], right [B]) of its text.
    """
    steps = system.latent_steps
    hidden, cache = read_body(
        system.models[role],
        agents[role],
        prefix,
        ids=jnp.take(prompt.body_ids, form, axis=1),
        valid=jnp.take(prompt.body_valid, form, axis=1),
        received=arrived,
        slot_index=prompt.slot_index,
        room=max(steps - 1, 0 if target is None else target.ids.shape[1] - 1),
    )
    written = None
    if target is not None:
        states, *written = text_states(system, agents, role, hidden, cache, target)
    if teacher_forced:
        return states[:, :steps], written
    feed = functools.partial(channel.feed, role)
    return think(system.models[role], agents[role], feed, hidden, cache, steps=steps), written


def deliver(
    system: System,
    agents: Any,
    channel: Channel,
    role: str,
    thoughts: jax.Array,
    *,
    probes: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """What a role's thoughts [B, M, D] become on each of its edges: edge name -> [B, M, D']."""
    sent = {}
    for edge in system.topology.edges:
        if edge[0] == role:
            name = edge_name(edge)
            vectors = channel.send(edge, thoughts) + (probes or {}).get(name, 0.0)
            sent[name] = vectors.astype(_dtype(agents[edge[1]]))
    return sent


def no_feedback(system: System, agents: Any, prompts: Mapping[str, StagePrompt]) -> dict:
    """Feedback edges before the first round: zeros, which no first prompt has a slot for."""
    batch = prompts[system.topology.answerer].body_ids.shape[0]
    return {
        edge_name((sender, role)): jnp.zeros(
            (batch, system.latent_steps, system.width(role)), _dtype(agents[role])
        )
        for sender, role in system.topology.feedback_edges
    }


def nothing_received(system: System, agents: Any, prompts: Mapping[str, StagePrompt]) -> jax.Array:
    """[B, 0, D]: what reaches the answerer where nothing is passed."""
    role = system.topology.answerer
    return jnp.zeros((prompts[role].body_ids.shape[0], 0, system.width(role)), _dtype(agents[role]))


def _dtype(params: Any) -> Any:
    return params["embedding"].dtype


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
) -> Speech:
    """Question to answer tokens on the device: R rounds of thoughts, then the answerer's text.

    R is data, so what is compiled serves any number of rounds (at least 1). `sampling` and `keys`
    are those of `sampling.speak`.
    """
    role = system.topology.answerer
    reading, _ = listen(system, agents, channel, prompts, rounds=rounds)
    return write(
        system.models[role],
        agents[role],
        reading,
        end_tokens=end_tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=keys,
    )
