"""Messages for causal audits: those of a run, and those to put in their place.

A message is [M, D'], vectors in the receiver's input space; by edge name, [R, B, M, D'] for the
rounds in which it arrives. The first round has no feedback: zeros, which no prompt of it reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.prompts import FIRST, LATER
from rmas_jax.rounds.stages import Stages, think_turn
from rmas_jax.rounds.trace import TracedStage
from rmas_jax.topology import Topology, edge_name

Messages = Mapping[str, np.ndarray]  # edge name -> [R, B, M, D']


def arrived_messages(
    topology: Topology, stages: Sequence[TracedStage], *, rounds: int
) -> dict[str, np.ndarray]:
    """The messages of traced rounds, by the round in which they arrive."""
    feedback = {edge_name(edge) for edge in topology.feedback_edges}
    found: dict[str, np.ndarray] = {}
    for stage in stages:
        for name, vectors in stage.sent.items():
            if name not in found:
                found[name] = np.zeros((rounds, *vectors.shape), vectors.dtype)
            if (index := stage.round + (name in feedback)) < rounds:
                found[name][index] = vectors
    return found


def own_messages(stages: Stages, *, rounds: int) -> dict[str, jax.Array]:
    """What each receiver would write into its slots itself: the compute of one message.

    The receiver reads its prompt with empty slots and thinks M steps, which return through its
    inner link. Edges into one receiver get the same vectors.

    Args:
      stages: the system; its intervention is not used.
      rounds: R.
    """
    topology, steps = stages.system.topology, stages.system.latent_steps
    found: dict[str, jax.Array] = {}
    for role in topology.order:
        prompt, agent = stages.prompts[role], stages.agents[role]
        slots = len(prompt.senders) * steps
        empty = jnp.zeros((prompt.body_ids.shape[0], slots, agent.width), agent.dtype)
        of_kind = [
            think_turn(stages, role, empty, kind=kind, present=jnp.zeros(slots, bool)).thoughts
            for kind in (FIRST, LATER)
        ]
        of_kind = [stages.channel.feed(role, thoughts) for thoughts in of_kind]
        by_round = jnp.stack([of_kind[FIRST], *[of_kind[LATER]] * (rounds - 1)])
        found |= {edge_name((sender, role)): by_round for sender in topology.senders(role)}
    return found


def zero_messages(messages: Messages) -> dict[str, np.ndarray]:
    """Zeros in the slots."""
    return {name: np.zeros_like(vectors) for name, vectors in messages.items()}


def noise_messages(messages: Messages, *, seed: int) -> dict[str, np.ndarray]:
    """Gaussian noise with the mean and covariance that each position of a message has over items.

    Moment-matched messages as in Cheng et al. (arXiv 2608.04893).

    Rounds and positions are independent of each other, as the moments are theirs. With X [N, D']
    the deviations from the mean at one of them, and X = Q T, the covariance is T' T / (N - 1): a
    sample is a random combination of the r = min(N, D') rows of T, so N x r numbers are drawn.

    Args:
      messages: of N >= 2 items.
      seed: of the noise.
    """
    random, found = np.random.default_rng(seed), {}
    for name, vectors in sorted(messages.items()):
        rounds, items, steps, _ = vectors.shape
        noise = np.empty_like(vectors)
        for at in itertools.product(range(rounds), range(steps)):
            place = at[0], slice(None), at[1]
            values = vectors[place].astype(np.float32)
            mean = values.mean(axis=0)
            rows = np.linalg.qr(values - mean, mode="r")
            mix = random.standard_normal((items, len(rows)), np.float32)
            noise[place] = mean + mix @ rows / np.sqrt(items - 1)
        found[name] = noise
    return found


def other_messages(messages: Messages, senders: np.ndarray) -> dict[str, np.ndarray]:
    """Another item's messages: item i gets those of item `senders[i]`."""
    return {name: vectors[:, senders] for name, vectors in messages.items()}


def other_items(
    questions: Sequence[str], answers: Sequence[str], *, seed: int | Sequence[int]
) -> np.ndarray:
    """For each item a random other one [N], whose question and gold answer both differ.

    An item without a gold answer (a program, graded by tests) has one of another question. Messages
    have M positions whatever the question, so lengths match by construction.

    Raises:
      ValueError: an item has no such other one.
    """
    random = np.random.default_rng(seed)
    chosen = np.empty(len(questions), int)
    asked, gold = np.array(questions, object), np.array(answers, object)
    for i in range(len(questions)):
        others = np.flatnonzero((asked != asked[i]) & ((gold != gold[i]) | (gold[i] == "")))
        if not others.size:
            raise ValueError(
                f"items must differ in question and gold answer, got none other than {i}'s: "
                f"{questions[i]!r}"
            )
        chosen[i] = random.choice(others)
    return chosen
