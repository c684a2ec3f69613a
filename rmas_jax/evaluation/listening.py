"""What precedes an answer: latent rounds, messages in text, or the answering agent's prompt alone.

Prefixes, rounds and messages that another method, other rounds or another seed have, too, come from
`Answerer.shared`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_prefix
from rmas_jax.evaluation.answering import Listened, Prompts
from rmas_jax.evaluation.crossings import Crossed, crossed_tokens
from rmas_jax.evaluation.shared import Key, Same, content
from rmas_jax.host.nonfinite import earliest_fault
from rmas_jax.models import Cache
from rmas_jax.planning.executables import ahead_of_time
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.rounds import text_channel
from rmas_jax.rounds.budget import latent_flops, prefix_flops, steps_before_answer
from rmas_jax.rounds.channels import Channel, SelectChannel, ShuffledChannel
from rmas_jax.rounds.progress import Progress, advance, no_progress
from rmas_jax.rounds.schedules import SCHEDULES, longest_chain
from rmas_jax.rounds.stages import begin, check_prompts
from rmas_jax.rounds.text_channel import Message
from rmas_jax.sharding import batch_sharding, put_batch, replicated, to_host
from rmas_jax.topology import System

if TYPE_CHECKING:
    from rmas_jax.evaluation.answerer import Answerer

read_prefix_jitted = ahead_of_time(jax.jit(read_prefix))
start_jitted = jax.jit(no_progress, static_argnames="system")


@functools.partial(ahead_of_time, static=("system",))
@functools.partial(jax.jit, static_argnames="system")
def listen_jitted(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Prompts,
    prefixes: Mapping[str, Cache] | None = None,
    before: Progress | None = None,
    *,
    rounds: jax.Array,
    shuffle: jax.Array,
) -> tuple[Progress, Cache | None]:
    """Latent rounds, and the answerer's prefix if it is read here.

    Rounds and control are data: all methods over a channel run one compiled program for an M.

    Args:
      system: with M of at least 1 (static).
      agents, channel, prompts: see `recursion.listen`.
      prefixes: by role; None: all are read here.
      before: of fewer rounds; None: of none.
      rounds: R.
      shuffle: whether every item gets another one's latents.
    """
    check_prompts(system, agents, prompts)
    channel = SelectChannel(shuffle, ShuffledChannel(channel), channel)
    stages = begin(system, agents, channel, prompts, prefixes)
    if before is None:
        before = no_progress(system, agents, prompts)
    read_here = None if prefixes else stages.prefixes[system.topology.answerer]
    return advance(stages, before, rounds=rounds), read_here


def read_prefixes(
    answerer: Answerer, prompts: Mapping[str, StagePrompt], roles: Iterable[str]
) -> dict[str, Cache]:
    """Role -> the cache of its prefix, which all prompts with these tokens share."""

    def of_role(role: str) -> Cache:
        agent = answerer.team.members[role].agent
        ids, valid = prompts[role].prefix_ids, prompts[role].prefix_valid
        return answerer.shared.get(
            ("prefix", Same(agent), content(ids), content(valid)),
            lambda: read_prefix_jitted(agent, *put_batch((ids, valid), answerer.team.mesh)),
        )

    return {role: of_role(role) for role in dict.fromkeys(roles)}


def in_latents(answerer: Answerer, channel: Channel, prompts: Prompts) -> Listened:
    """Only the answer is text; before it, each stage takes M steps."""
    team, system, rounds = answerer.team, answerer.system, answerer.rounds
    role, order = system.topology.answerer, system.topology.order
    shared, batch = answerer.shared, put_batch(prompts, team.mesh)
    prefixes = read_prefixes(answerer, prompts, order) if shared.budget else None

    def key(count: int) -> Key:
        links, method = answerer.links, answerer.method
        return "rounds", method.channel, method.is_shuffled, Same(links), Same(prompts), count

    def run() -> tuple[Progress, Cache | None]:
        if earlier := shared.first(map(key, range(rounds - 1, 0, -1))):
            before, _ = earlier
        elif shared.budget:
            before = _on_mesh(start_jitted(system, team.agents, batch), team.mesh)
        else:
            before = None
        progress, read_here = listen_jitted(
            system,
            team.agents,
            channel,
            batch,
            prefixes,
            before,
            rounds=np.int32(rounds),  # as it is planned: a Python integer has a weak type
            shuffle=answerer.method.is_shuffled,
        )
        return _on_mesh(progress, team.mesh), read_here

    progress, read_here = shared.get(key(rounds), run)
    if fault := earliest_fault(order, to_host(progress.fault)):
        raise fault.error()
    kind, own = FIRST if rounds == 1 else LATER, prompts[role]
    ids, valid = put_batch((own.body_ids[:, kind], own.body_valid[:, kind]), team.mesh)
    prefix = prefixes[role] if prefixes else read_here
    assert prefix is not None
    prompt = PromptInput(prefix, ids, valid, progress.received, own.slot_index)
    steps = steps_before_answer(system.topology, rounds, answerer.latent_steps)
    sweeps = None if progress.sweeps is None else to_host(progress.sweeps)
    flops = latent_flops(system, team.agents, prompts, rounds=rounds, sweeps=sweeps)
    return Listened(
        prompt,
        0,
        steps,
        flops,
        crossed=_crossed(answerer, channel, prompts),
        sweeps=None if sweeps is None else sweeps.sum(axis=1),
    )


def _on_mesh(progress: Progress, mesh: Mesh | None) -> Progress:
    """The same in one place, so that one program continues from any rounds."""
    if mesh is None:
        return progress
    return jax.device_put(progress, progress_shardings(progress, mesh))


def progress_shardings(progress: Progress, mesh: Mesh) -> Progress:
    """Where the arrays of rounds between two programs lie."""
    return jax.tree.map(
        lambda x: batch_sharding(x.shape[0], mesh) if x.ndim else replicated(mesh), progress
    )


def _crossed(
    answerer: Answerer, channel: Channel, prompts: Prompts
) -> Callable[[], list[Crossed]] | None:
    """What crosses the edges, computed once it is asked for: its time is not the method's."""
    if not (count := answerer.answering.nearest_tokens):
        return None
    if answerer.method.is_shuffled:
        channel = ShuffledChannel(channel)
    return functools.cache(
        functools.partial(
            crossed_tokens,
            *(answerer.team, answerer.system, channel, prompts),
            rounds=answerer.rounds,
            count=count,
        )
    )


def in_text(answerer: Answerer, prompts: Prompts) -> Listened:
    """A token is a step; stages that do not wait for each other run side by side."""
    team, method, rounds = answerer.team, answerer.method, answerer.rounds
    topology, latent_steps, shared = team.system.topology, team.system.latent_steps, answerer.shared
    max_tokens = latent_steps if method.is_cut else answerer.answering.max_tokens
    if method.fills_budget:
        role = topology.answerer
        prompt, messages = text_channel.refine(
            team.members[role],
            prompts[role],
            budget=steps_before_answer(topology, rounds, latent_steps),
            max_tokens=max_tokens,
            prefix=read_prefixes(answerer, prompts, [role])[role],
            mesh=team.mesh,
        )
        tokens = sum(message.tokens for message in messages)
        return Listened(prompt, tokens, tokens, _flops(answerer, prompts, messages), messages)
    schedule = SCHEDULES[method.schedule]
    stages = schedule(topology, rounds)
    listen = functools.partial(
        text_channel.listen,
        topology,
        team.members,
        prompts,
        rounds=rounds,
        max_tokens=max_tokens,
        schedule=schedule,
        prefixes=read_prefixes(answerer, prompts, (stage.role for stage in stages)),
        is_shuffled=method.is_shuffled,
        mesh=team.mesh,
    )

    def key(count: int) -> Key:
        return "messages", method.name, Same(prompts), count

    def write() -> Any:
        return listen(written=shared.first(map(key, range(rounds - 1, 0, -1))) or ())[1]

    prompt, messages = listen(written=shared.get(key(rounds), write))
    written = [message.tokens for message in messages]
    steps = longest_chain(stages, [*written, 0])
    return Listened(prompt, sum(written), steps, _flops(answerer, prompts, messages), messages)


def _flops(answerer: Answerer, prompts: Prompts, messages: Sequence[Message]) -> np.ndarray:
    """Model FLOPs [B] of messages, and of the prefixes that their writers and the answerer read."""
    roles = dict.fromkeys([*(message.role for message in messages), answerer.answers_as])
    of_messages = sum(message.flops for message in messages)
    return prefix_flops(answerer.team.agents, prompts, roles) + of_messages


def alone(answerer: Answerer, prompts: Prompts, role: str, *, kind: int = FIRST) -> Listened:
    """An agent reads its prompt of a kind of round, with nothing in the slots."""
    team = answerer.team
    prompt = text_channel.read_alone(
        team.members[role],
        prompts[role],
        kind=kind,
        prefix=read_prefixes(answerer, prompts, [role])[role],
        mesh=team.mesh,
    )
    return Listened(prompt, 0, 0, prefix_flops(team.agents, prompts, [role]))


def all_alone(answerer: Answerer, prompts: Prompts) -> Listened:
    """Every agent reads its first prompt."""
    order = answerer.team.system.topology.order
    found = {role: alone(answerer, prompts, role) for role in order}
    own = found.pop(answerer.answers_as)
    return own._replace(
        flops=own.flops + sum(listened.flops for listened in found.values()),
        beside={role: listened.prompt for role, listened in found.items()},
    )
