"""Vectors that cross edges, as the receiver's nearest tokens: a record of bounded size per item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from rmas_jax.agents.member import Member
from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.messages import arrived_messages
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.sharding import put_batch
from rmas_jax.team import Team
from rmas_jax.topology import System, edge_name

# Edge name -> round of arrival, from 1 -> position -> k tokens, nearest first.
Crossed = dict[str, dict[str, list[list[str]]]]
MAX_POSITIONS = 16  # of a message; of more, so many at equal distances, ends included
COSINES = 2**25  # in memory at once


def crossed_tokens(
    team: Team,
    system: System,
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    count: int,
) -> list[Crossed]:
    """What crosses each edge in each round, for each of B items.

    Runs the rounds once more, stage by stage. Feedback of the last round arrives nowhere.

    Args:
      team: the members, and their mesh.
      system: with M thoughts per turn, at least 1.
      channel: how thoughts travel.
      prompts: by role, batch B.
      rounds: R.
      count: k, tokens per vector.
    """
    batch = put_batch(prompts, team.mesh)
    trace = trace_rounds(system, team.agents, channel, batch, rounds=rounds)
    arrived = arrived_messages(system.topology, trace.stages, rounds=rounds)
    items = next(iter(prompts.values())).body_ids.shape[0]
    found: list[Crossed] = [{} for _ in range(items)]
    for edge in system.topology.edges:
        name, is_feedback = edge_name(edge), edge in system.topology.feedback_edges
        for index in range(is_feedback, rounds):
            vectors = arrived[name][index]  # [B, M, D']
            shown = np.unique(
                np.linspace(0, vectors.shape[1] - 1, MAX_POSITIONS).round().astype(int)
            )
            tokens = _nearest(team.members[edge[1]], vectors[:, shown], count)
            for crossed, of_item in zip(found, tokens, strict=True):
                crossed.setdefault(name, {})[str(index + 1)] = of_item
    return found


def _nearest(receiver: Member, vectors: np.ndarray, count: int) -> Iterator[list[list[str]]]:
    """Yields the tokens [P][k] of each item of vectors [B, P, D], in blocks of one size."""
    batch, positions, width = vectors.shape
    flat = vectors.reshape(-1, width)
    size = min(len(flat), max(1, COSINES // receiver.agent.config.vocab_size))
    padded = np.pad(flat, ((0, -len(flat) % size), (0, 0)))
    ids = np.concatenate(
        [
            jax.device_get(nearest_tokens(receiver.agent, block, count=count)[0])
            for block in np.split(padded, len(padded) // size)
        ]
    )[: len(flat)]
    decode = receiver.tokenizer.decode
    for of_item in ids.reshape(batch, positions, count).tolist():
        yield [[decode([token]) for token in nearest] for nearest in of_item]
