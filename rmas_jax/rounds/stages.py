"""One agent's turn in a round: receiving, reading, thinking and sending.

inbox --> arrivals --> think_turn or scored_turn --> deliver --> inbox
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body, read_prefix
from rmas_jax.agents.sweeps import Before
from rmas_jax.agents.thinking import Rollout, think
from rmas_jax.models import Cache, CheckpointError
from rmas_jax.models.vocabulary import check_array
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.conditional import cond_or_zeros
from rmas_jax.rounds.interventions import Intervention
from rmas_jax.rounds.supervision import Targets, TextScore, read_text, read_with_text, score_text
from rmas_jax.topology import System, edge_name


class Stages(struct.PyTreeNode):
    """The inputs of all turns that are the same in every round."""

    system: System = struct.field(pytree_node=False)
    agents: Mapping[str, Agent]  # by role
    channel: Channel
    prompts: Mapping[str, StagePrompt]  # by role, batch B
    prefixes: Mapping[str, Cache]  # by role; serve all rounds and the answer
    truncate_steps: int | None = struct.field(pytree_node=False, default=None)  # see `think`
    recompute: bool = struct.field(pytree_node=False, default=False)  # see `think`
    intervention: Intervention | None = None  # None: messages arrive as they are sent


class Turn(struct.PyTreeNode):
    """Results of an agent's turn."""

    thoughts: jax.Array  # [B, M, D]
    sweeps: jax.Array | None = None  # [B] int32, see `Rollout`
    score: TextScore | None = None  # of its text; None: never scored


def begin(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    prefixes: Mapping[str, Cache] | None = None,
    *,
    truncate_steps: int | None = None,
    recompute: bool = False,
    intervention: Intervention | None = None,
) -> Stages:
    """Collects the inputs of all turns; reads every role's prefix unless `prefixes` are given.

    Where weights move as agents begin to read or to think, they move once for all rounds.
    """
    agents = {role: agent.ahead("reading", "thinking") for role, agent in agents.items()}
    if prefixes is None:
        prefixes = read_prefixes(system, agents, prompts)
    return Stages(
        system, agents, channel, prompts, prefixes, truncate_steps, recompute, intervention
    )


def read_prefixes(
    system: System, agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt]
) -> dict[str, Cache]:
    """Reads every role's prefix."""
    return {
        role: read_prefix(agents[role], prompts[role].prefix_ids, prompts[role].prefix_valid)
        for role in system.topology.order
    }


def check_prompts(
    system: System,
    agents: Mapping[str, Agent],
    prompts: Mapping[str, StagePrompt],
    targets: Mapping[str, Targets] | None = None,
) -> None:
    """Checks prompts and texts against the system and its agents.

    Raises:
      ValueError: the width of a prompt's slots is not M; gives role and widths.
      CheckpointError: a token id has no row in its agent's embedding; gives role and id. Not
        checked under jit.
    """
    for role, prompt in prompts.items():
        slots = sum(number >= 0 for number in prompt.slot_index)
        if slots != (needed := len(prompt.senders) * system.latent_steps):
            raise ValueError(
                f"prompts[{role!r}]: slots must be {system.latent_steps} wide (latent_steps), "
                f"{needed} positions for {len(prompt.senders)} senders, got {slots}: encode them "
                "with slot_width=latent_steps"
            )
        texts = [] if targets is None or role not in targets else [targets[role].ids]
        for ids in (prompt.prefix_ids, prompt.body_ids, *texts):
            try:
                check_array(ids, agents[role].config.vocab_size)
            except CheckpointError as error:
                raise CheckpointError(f"{role}: {error}") from None


def prompt_input(
    prompt: StagePrompt,
    prefix: Cache,
    received: jax.Array,
    *,
    kind: jax.Array | int,
    present: jax.Array | None = None,
) -> PromptInput:
    """A prompt of a FIRST or LATER round with latents [B, S, D] in its slots.

    Slots where `present` [S] is False are as padding; None: all are present.
    """
    ids, valid = (jnp.take(x, kind, axis=1) for x in (prompt.body_ids, prompt.body_valid))
    if present is not None:
        slots = np.array(prompt.slot_index)  # -1 for a token, which takes the last entry
        valid &= jnp.concatenate([present, jnp.ones(1, bool)])[None, slots]
    return PromptInput(
        prefix=prefix,
        ids=ids,
        valid=valid,
        received=received,
        slot_index=prompt.slot_index,
    )


def arrivals(
    stages: Stages, inbox: Mapping[str, jax.Array], role: str, *, index: jax.Array | int
) -> jax.Array:
    """Vectors for a role's slots [B, S, D], from the latest vectors of all edges (by edge name).

    The order is that of the slots in the prompt, which may differ from that of the edges. `index`
    is the number of the round, from 0, for an intervention.
    """
    prompt, agent = stages.prompts[role], stages.agents[role]
    names = [edge_name((sender, role)) for sender in prompt.senders]
    nothing = jnp.zeros((prompt.body_ids.shape[0], 0, agent.width), agent.dtype)
    sent = jnp.concatenate([nothing, *(inbox[name] for name in names)], axis=1)
    if stages.intervention is None:
        return sent
    return stages.intervention.arrives(prompt, role, sent, index=index)


def present(stages: Stages, role: str, *, index: jax.Array | int) -> jax.Array | None:
    """Which slot positions of a role hold a message, [S] bool; None: all, without intervention."""
    if stages.intervention is None:
        return None
    return stages.intervention.present(stages.prompts[role], role, index=index)


def think_turn(
    stages: Stages,
    role: str,
    arrived: jax.Array,
    *,
    kind: jax.Array | int,
    is_needed: jax.Array | bool = True,
    present: jax.Array | None = None,
    before: Before | None = None,
) -> Turn:
    """A turn without a text: reads the prompt with the received vectors, and thinks.

    `is_needed` and `kind` may be traced, so that one program serves rounds that differ in them.

    Args:
      stages: the system.
      role: the agent's.
      arrived: [B, S, D], from `arrivals`.
      kind: of the round, FIRST or LATER.
      is_needed: whether to think; zeros if not.
      present: see `prompt_input`.
      before: the role's thoughts of the round before, of parallel thinking.
    """
    batch, steps = arrived.shape[0], stages.system.latent_steps

    def turn() -> Turn:
        hidden, cache = _read(stages, role, arrived, kind=kind, present=present)
        return _turn(_think(stages, role, hidden, cache, before))

    if is_needed is True:
        return turn()
    nothing = Turn(
        jnp.zeros((batch, steps, arrived.shape[2]), arrived.dtype), no_sweeps(stages.system, batch)
    )
    return jax.lax.cond(is_needed, turn, lambda: nothing)


def no_sweeps(system: System, batch: int) -> jax.Array | None:
    """The sweeps [B] of a turn without thinking."""
    return None if system.sweeps is None else jnp.zeros(batch, jnp.int32)


def scored_turn(
    stages: Stages,
    role: str,
    arrived: jax.Array,
    target: Targets,
    *,
    kind: jax.Array | int,
    is_scored: jax.Array | bool = True,
    is_forced: bool = False,
    before: Before | None = None,
) -> Turn:
    """A turn with a text, for training: reads the prompt, scores the text, and thinks.

    A text is read only as far as its loss or teacher-forced thoughts need it.

    Args:
      stages, role, arrived, kind, before: as for `think_turn`.
      target: the role's text of this round, [B, W].
      is_scored: whether the text has a loss; an array is evaluated on the device and gives a score
        of zeros where it is False.
      is_forced: whether thoughts are the states over the text, instead of a rollout.
    """
    agent, steps, width = stages.agents[role], stages.system.latent_steps, target.ids.shape[1]
    if is_forced:
        prompt = prompt_input(stages.prompts[role], stages.prefixes[role], arrived, kind=kind)
        upto = width if is_scored is True else steps
        states, cache = read_with_text(agent, prompt, target, upto=upto)
        turn = Turn(states[:, :steps], no_sweeps(stages.system, len(states)))
    else:
        hidden, cache = _read(stages, role, arrived, kind=kind)
        states, turn = hidden[:, None], _turn(_think(stages, role, hidden, cache, before))

    def score() -> TextScore:
        return score_text(agent, target, read_text(agent, target, states, cache))

    if is_scored is True:
        return turn.replace(score=score())
    if is_scored is False:
        return turn
    return turn.replace(score=cond_or_zeros(is_scored, score))


def _read(
    stages: Stages,
    role: str,
    arrived: jax.Array,
    *,
    kind: jax.Array | int,
    present: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    prompt = prompt_input(
        stages.prompts[role], stages.prefixes[role], arrived, kind=kind, present=present
    )
    return read_body(stages.agents[role], prompt)


def _turn(rollout: Rollout) -> Turn:
    return Turn(rollout.thoughts, rollout.sweeps)


def _think(
    stages: Stages, role: str, hidden: jax.Array, cache: Cache, before: Before | None
) -> Rollout:
    return think(
        stages.agents[role],
        functools.partial(stages.channel.feed, role),
        hidden,
        cache,
        steps=stages.system.latent_steps,
        sweeps=stages.system.sweeps,
        before=before,
        truncate_steps=stages.truncate_steps,
        recompute=stages.recompute,
    )


def deliver(
    stages: Stages,
    role: str,
    thoughts: jax.Array,
    *,
    probes: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Sends a role's thoughts [B, M, D] over each of its edges: edge name -> [B, M, D']."""
    sent = {}
    for edge in stages.system.topology.edges:
        if edge[0] == role:
            name = edge_name(edge)
            vectors = stages.channel.send(edge, thoughts)
            if vectors.shape[-1] != (width := stages.agents[edge[1]].width):
                raise ValueError(
                    f"{type(stages.channel).__name__}.send: vectors on {name} must be {width} "
                    f"wide, got {vectors.shape[-1]}"
                )
            vectors = vectors + (probes or {}).get(name, 0.0)
            receiver = stages.agents[edge[1]]
            sent[name] = receiver.partition.constrain(
                vectors.astype(receiver.dtype), "batch", None, None
            )
    return sent


def rows_finite(*arrays: jax.Array) -> jax.Array:
    """Whether all values in each row of arrays [B, ...] are finite: [B] bool."""
    return functools.reduce(
        jnp.logical_and, [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in arrays]
    )


def no_feedback(
    system: System, agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt]
) -> dict[str, jax.Array]:
    """Feedback before the first round: zeros, since first prompts have no slot for it."""
    batch = prompts[system.topology.answerer].body_ids.shape[0]
    nothing = {}
    for sender, role in system.topology.feedback_edges:
        agent = agents[role]
        zeros = jnp.zeros((batch, system.latent_steps, agent.width), agent.dtype)
        nothing[edge_name((sender, role))] = agent.partition.constrain(zeros, "batch", None, None)
    return nothing


def no_thoughts(
    system: System, agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt]
) -> dict[str, jax.Array]:
    """Zeros [B, M, D] by role in place of thoughts before the first round.

    Empty where no thinking starts from those of the round before.
    """
    if system.sweeps is None or system.sweeps.start != "round":
        return {}
    batch = prompts[system.topology.answerer].body_ids.shape[0]
    nothing = {}
    for role, agent in agents.items():
        zeros = jnp.zeros((batch, system.latent_steps, agent.width), agent.dtype)
        nothing[role] = agent.partition.constrain(zeros, "batch", None, None)
    return nothing


def nothing_received(
    system: System, agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt]
) -> jax.Array:
    """[B, 0, D]: the answerer's received vectors where nothing is passed."""
    role = system.topology.answerer
    return jnp.zeros((prompts[role].body_ids.shape[0], 0, agents[role].width), agents[role].dtype)
