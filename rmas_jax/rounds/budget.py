"""Steps and model FLOPs before an answer, per item: prompts read, thoughts made, vectors sent.

    prefix    | body, M - 1 thoughts fed back | body, M - 1 thoughts fed back | ... | the answer
    each role   each role's turn, round 1       round 2                             `Texts.flops`

Useful work alone counts (`models.flops`), of turns on which the answer depends. Texts count where
they are written (`Texts.flops`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sweeps import windows
from rmas_jax.links import link_flops
from rmas_jax.models.flops import read_flops
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.schedules import longest_chain, recursion
from rmas_jax.topology import System, Topology, edge_name


def prefix_flops(
    agents: Mapping[str, Agent], prompts: Mapping[str, StagePrompt], roles: Iterable[str]
) -> np.ndarray:
    """FLOPs [B] of reading the prefixes of roles, once each."""
    return np.sum(
        [read_flops(agents[role].config, _prefix(agents[role], prompts[role])) for role in roles],
        axis=0,
    )


Origin = Callable[[str, int], str]  # edge name, round of arrival from 0 -> of the next four
SENT = "sent"  # made by a sender's turn
OWN = "own"  # the receiver's own thoughts, see `messages.own_messages`
GIVEN = "given"  # made by no agent, such as zeros
NOTHING = "nothing"  # an empty slot


def as_sent(edge: str, index: int) -> str:
    """All messages are made by their senders."""
    return SENT


class LatentTurn(NamedTuple):
    """A turn on which the answer depends."""

    role: str
    kind: int  # of its prompt, FIRST or LATER
    reads: Mapping[str, int]  # sender, whose slot an agent's message fills -> index of its turn
    empty: int = 0  # slots without a message
    is_own: bool = False  # makes its receiver's own message


def latent_turns(topology: Topology, rounds: int, origin: Origin = as_sent) -> list[LatentTurn]:
    """The turns of R latent rounds on which the answer depends, in order; the last one answers."""
    turns: list[LatentTurn] = []
    places: list[int] = []  # of the stages of the recursion
    own: dict[tuple[str, int], int] = {}
    for stage in recursion(topology, rounds):
        role, kind = stage.role, stage.kind
        origins = {s: origin(edge_name((s, role)), stage.round) for s in stage.reads}
        if OWN in origins.values() and (role, kind) not in own:
            own[role, kind] = len(turns)
            turns.append(LatentTurn(role, kind, {}, empty=len(stage.reads), is_own=True))
        makers = {s: places[i] for s, i in stage.reads.items() if origins[s] == SENT}
        makers |= {s: own[role, kind] for s in stage.reads if origins[s] == OWN}
        places.append(len(turns))
        turns.append(LatentTurn(role, kind, makers, [*origins.values()].count(NOTHING)))
    needed = {len(turns) - 1}
    for i in reversed(range(len(turns))):
        if i in needed:
            needed.update(turns[i].reads.values())
    place = {i: number for number, i in enumerate(sorted(needed))}
    return [
        turns[i]._replace(reads={sender: place[at] for sender, at in turns[i].reads.items()})
        for i in place
    ]


def steps_before_answer(
    topology: Topology, rounds: int, latent_steps: int, origin: Origin = as_sent
) -> int:
    """Sequential steps of R rounds of recursion with M steps a turn, up to the answer.

    Of N agents in a row: (N R - 1) M.
    """
    turns = latent_turns(topology, rounds, origin)
    return int(longest_chain(turns, [latent_steps] * (len(turns) - 1) + [0]))


def latent_flops(
    system: System,
    agents: Mapping[str, Agent],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    origin: Origin = as_sent,
    sweeps: np.ndarray | None = None,
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
      origin: of messages; what is made and reaches no answer does not count.
      sweeps: [B, N] of parallel thinking, see `Outcome`: what they read again is work, too.
    """
    topology, steps = system.topology, system.latent_steps
    turns = latent_turns(topology, rounds, origin if steps else lambda edge, index: NOTHING)
    total = prefix_flops(agents, prompts, dict.fromkeys(turn.role for turn in turns))
    is_sent_through_inner = system.sent_vectors == "outer_of_inner"
    for turn in turns[:-1]:  # the last body is counted with its text
        agent, prompt = agents[turn.role], prompts[turn.role]
        body = prompt.body_valid[:, turn.kind].sum(axis=-1) - turn.empty * steps  # [B]
        total = total + read_flops(agent.config, body + steps - 1, _prefix(agent, prompt))
        through_inner = steps if turn.is_own or is_sent_through_inner else steps - 1
        total = total + through_inner * link_flops(system.inner[turn.role])
    for turn in turns:
        for sender, maker in turn.reads.items():
            if not turns[maker].is_own:
                total = total + steps * link_flops(system.outer[edge_name((sender, turn.role))])
    if sweeps is not None and system.sweeps is not None and steps > 1:
        _, width = windows(steps - 1, system.sweeps.window)
        for role, taken in zip(topology.order, sweeps.T, strict=True):
            thinking = [turn for turn in turns[:-1] if turn.role == role]
            agent, prompt = agents[role], prompts[role]
            again = width * taken - len(thinking) * (steps - 1)  # positions [B]
            before = _prefix(agent, prompt) + prompt.body_valid[:, -1].sum(axis=-1)
            each = read_flops(agent.config, 1, before + steps // 2) + link_flops(system.inner[role])
            total = total + again * each
    return total


def _prefix(agent: Agent, prompt: StagePrompt) -> np.ndarray:
    """Real positions [B] of a prompt's prefix, behind the agent's soft prompt."""
    # A batch reads the soft prompt once; counted for each item, as for a batch of one.
    soft = 0 if agent.soft_prompt is None else len(agent.soft_prompt)
    return soft + np.asarray(prompt.prefix_valid).sum(axis=-1)
