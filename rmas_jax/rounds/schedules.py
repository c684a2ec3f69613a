"""Who writes when, from which earlier texts: the schedules of systems that exchange texts.

    recursion            mixture of agents      TextGrad               self-refinement
    a -> b -> c          a   b   c              c writes a draft       c writes drafts,
    ^---------'          | x | x |              a, b read the draft    each from the one
    (next round)         a   b   c              c revises, reading     before
                          \\  |  /               the draft and both
                             c

A schedule is data: the stages in order, each with the earlier stages that it reads. The last stage
writes the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from rmas_jax.prompts import FIRST, LATER
from rmas_jax.topology import Topology

RECURSION: Final = "recursion"
SELF_REFINEMENT: Final = "self_refinement"
MIXTURE_OF_AGENTS: Final = "mixture_of_agents"
TEXTGRAD: Final = "textgrad"


class TextStage(NamedTuple):
    """A stage in which an agent writes a text."""

    round: int  # from 0
    role: str
    kind: int  # of its prompt, FIRST or LATER
    reads: Mapping[str, int]  # sender, whose slot is filled -> index of the stage that wrote


Schedule = Callable[[Topology, int], list[TextStage]]  # topology, rounds -> stages


def recursion(topology: Topology, rounds: int) -> list[TextStage]:
    """R rounds in the topology's order, along its edges.

    A reader gets each sender's latest text: this round's if the sender comes before the reader.
    """
    stages: list[TextStage] = []
    newest: dict[str, int] = {}
    for index in range(rounds):
        for role in topology.order:
            reads = {
                sender: newest[sender] for sender in topology.senders(role) if sender in newest
            }
            newest[role] = len(stages)
            stages.append(TextStage(index, role, _kind(index), reads))
    return stages


def self_refinement(topology: Topology, rounds: int) -> list[TextStage]:
    """The answerer alone: each text is written from the one before."""
    role = topology.answerer
    return [
        TextStage(index, role, _kind(index), {role: index - 1} if index else {})
        for index in range(rounds)
    ]


def mixture_of_agents(topology: Topology, rounds: int) -> list[TextStage]:
    """R layers: every agent reads all answers of the layer before; the answerer ends (2406.04692).

    The agents of a layer do not read each other.
    """
    stages: list[TextStage] = []
    layer: dict[str, int] = {}
    for index in range(rounds - 1):
        first = len(stages)
        stages += [TextStage(index, role, _kind(index), layer) for role in topology.order]
        layer = {role: first + i for i, role in enumerate(topology.order)}
    return [*stages, TextStage(rounds - 1, topology.answerer, _kind(rounds - 1), layer)]


def textgrad(topology: Topology, rounds: int) -> list[TextStage]:
    """The answerer's draft, and R - 1 updates of it by textual gradients (2406.07496, section 3).

    For an update, every other agent writes feedback on the draft, a textual gradient; the answerer
    revises the draft.
    """
    answerer = topology.answerer
    stages, draft = [TextStage(0, answerer, FIRST, {})], 0
    for index in range(1, rounds):
        reads = {answerer: draft}
        for role in topology.order:
            if role != answerer:
                reads[role] = len(stages)
                stages.append(TextStage(index, role, LATER, {answerer: draft}))
        draft = len(stages)
        stages.append(TextStage(index, answerer, LATER, reads))
    return stages


SCHEDULES: dict[str, Schedule] = {
    RECURSION: recursion,
    SELF_REFINEMENT: self_refinement,
    MIXTURE_OF_AGENTS: mixture_of_agents,
    TEXTGRAD: textgrad,
}


class Reader(Protocol):
    """A stage, of texts or latents."""

    @property
    def reads(self) -> Mapping[str, int]:
        """Sender -> index of the stage that wrote."""


def longest_chain(stages: Sequence[Reader], steps: Sequence[Any]) -> Any:
    """Sequential model steps up to the end of the last stage: the critical path.

    It is the longest chain of steps in which each needs the one before; stages that do not wait for
    each other count as the longest of them.

    Args:
      stages: of a schedule.
      steps: of each stage; numbers, or arrays [B] for B items, each with a chain of its own.
    """
    ends: list[Any] = []
    for stage, own in zip(stages, steps, strict=True):
        ends.append(own + functools.reduce(np.maximum, (ends[i] for i in stage.reads.values()), 0))
    return ends[-1]


def edges_of(schedule: Schedule, topology: Topology) -> tuple[tuple[str, str], ...]:
    """(sender, receiver) of all that a schedule's agents read from each other."""
    stages = schedule(topology, 3)  # longer schedules repeat these
    pairs = ((sender, stage.role) for stage in stages for sender in stage.reads)
    return tuple(dict.fromkeys(pairs))


def _kind(index: int) -> int:
    """The kind of a prompt in a round."""
    return LATER if index else FIRST
