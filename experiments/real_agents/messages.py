"""Messages of a planner that does not know the question, and all questions about each.

The solver is asked about every person of the same message, and both agents read what stands before
the message once for all M, links and controls. So an answer costs the positions after that alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct
from tqdm import tqdm

from experiments.real_agents.free_vectors import Draw, Questions, by_row, scores
from rmas_jax.agents.adapters import Adapter
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_prefix
from rmas_jax.data import evidence
from rmas_jax.evaluation.metrics import repeated_interval
from rmas_jax.links import Links
from rmas_jax.models import Cache, repeat_rows
from rmas_jax.prompts import FIRST, StagePrompt
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.stages import arrivals, begin, deliver, no_feedback, think_turn
from rmas_jax.rounds.supervision import TextScore
from rmas_jax.sharding import to_host
from rmas_jax.team import Team
from rmas_jax.topology import System, edge_name
from rmas_jax.training.data.encoding import encode_examples

EDGE = edge_name((evidence.PLANNER, evidence.SOLVER))


class Params(struct.PyTreeNode):
    """What makes a message: the links, and an adapter if the sender has one."""

    links: Links
    adapter: Adapter | None = None  # of the sender, as it thinks


class Messages(NamedTuple):
    """A batch of messages, with all questions about each."""

    prompts: Mapping[str, StagePrompt]  # by role, a row per message
    read: Cache  # the planner's prefix
    asked: Draw  # rows message by message; the prefix has a row per message


class Known(NamedTuple):
    """Questions about messages, and what both agents have read before these."""

    asked: Questions
    prefixes: Sequence[tuple[Cache, Cache]]  # planner's and solver's, by batch

    def batches(self, team: Team) -> list[Messages]:
        """Batches on the host, for a team of any M."""
        found = []
        for (batch, prompts), read in zip(
            _encoded(team, self.asked, len(self.prefixes)), self.prefixes, strict=True
        ):
            found.append(Messages(prompts, read[0], Draw(batch, read[1])))
        return found


def read_all(team: Team, asked: Questions, count: int) -> Known:
    """Reads what stands before the messages, in so many batches."""
    read, prefixes = jax.jit(read_prefix), []
    for _, prompts in tqdm([*_encoded(team, asked, count)], desc="reading"):
        own = [
            read(team.agents[role], prompts[role].prefix_ids, prompts[role].prefix_valid)
            for role in (evidence.PLANNER, evidence.SOLVER)
        ]
        prefixes.append(to_host((own[0], own[1])))
    return Known(asked, prefixes)


def _encoded(team: Team, asked: Questions, count: int) -> list[tuple[Any, Any]]:
    """By batch: all questions, and the prompts of the messages; all batches of one shape."""
    encoded = encode_examples(team, asked.examples)
    widths = encoded.widths(np.arange(len(encoded)))
    rows = np.arange(len(encoded)).reshape(count, -1, asked.shape[2])
    return [
        (encoded.batch(of.ravel(), widths), encoded.batch(of[:, 0], widths).prompts) for of in rows
    ]


def sent_vectors(
    system: System, agents: Mapping[str, Agent], params: Params, batch: Messages
) -> jax.Array:
    """What the planner sends about each message, [B, M, D]."""
    if params.adapter is not None:
        own = params.adapter.learning(agents[evidence.PLANNER])
        agents = {**agents, evidence.PLANNER: own}
    channel = LatentChannel(system, params.links)
    stages = begin(system, agents, channel, batch.prompts, {evidence.PLANNER: batch.read})
    inbox = no_feedback(system, agents, batch.prompts)
    arrived = arrivals(stages, inbox, evidence.PLANNER, index=0)
    thoughts = think_turn(stages, evidence.PLANNER, arrived, kind=FIRST).thoughts
    return deliver(stages, evidence.PLANNER, thoughts)[EDGE]


def answered(
    agents: Mapping[str, Agent],
    vectors: jax.Array,
    batch: Messages,
    present: jax.Array | None = None,
) -> TextScore:
    """Scores of the solver's answers to all questions about messages.

    Args:
      agents: by role.
      vectors: [B, M, D], the messages.
      batch: the questions.
      present: [M], which vectors there are; None: all.
    """
    solver = agents[evidence.SOLVER]
    return scores(solver, by_row(vectors, batch.asked), by_question(batch), present)


def by_question(batch: Messages) -> Draw:
    """The questions of a batch, with a prefix for each."""
    asked = batch.asked
    (prompt, *_) = batch.prompts.values()
    each = len(asked.batch) // len(prompt.prefix_ids)
    return asked._replace(prefix=repeat_rows(asked.prefix, each))


_sent = jax.jit(sent_vectors, static_argnums=0)


def sent(team: Team, params: Params, batches: Sequence[Messages]) -> np.ndarray:
    """What the planner sends about the messages of some batches, [n, M, D]."""
    of = [_sent(team.system, team.agents, params, batch) for batch in batches]
    return np.concatenate([np.asarray(vectors) for vectors in of])


@jax.jit
def _right(
    agents: Mapping[str, Agent], vectors: jax.Array, batch: Messages, present: jax.Array
) -> jax.Array:
    return answered(agents, vectors, batch, present).exact_match


def right(
    team: Team, vectors: np.ndarray, batches: Sequence[Messages], *, is_there: bool = True
) -> np.ndarray:
    """Whether all questions about n messages are answered exactly, [n, persons].

    Args:
      team: with M latent steps.
      vectors: [n, M, D], what arrives for each message.
      batches: the questions, batches of one size.
      is_there: whether it arrives; the slot is as padding otherwise.
    """
    by_batch = vectors.reshape(len(batches), -1, *vectors.shape[1:])
    present = np.full(vectors.shape[1], is_there)
    found = [
        np.asarray(_right(team.agents, of, batch, present))
        for of, batch in zip(by_batch, batches, strict=True)
    ]
    return np.concatenate(found).reshape(len(vectors), -1)


def summary(exact: np.ndarray) -> dict[str, Any]:
    """Accuracy of answers [n, questions], with its interval over messages."""
    interval = repeated_interval(exact.sum(1), np.full(len(exact), exact.shape[1]))
    return {"n": len(exact), "accuracy": float(exact.mean()), "interval": [*interval]}


def with_count(team: Team, count: int) -> Team:
    """The same team with another M."""
    system = dataclasses.replace(team.system, latent_steps=count)
    return dataclasses.replace(team, system=system)
