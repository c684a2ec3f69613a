"""What the solver keeps of a message's text, so that M vectors can be made to leave the same.

What follows a message reads it through its keys and values, which do not depend on the question
that comes after it. Each of M vectors stands for a part of the text, and its keys and values, in
every layer, are to be those of the last token of that part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.real_agents.messages import Known, Messages, with_count
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_positions
from rmas_jax.data import evidence
from rmas_jax.models import DecoderConfig
from rmas_jax.models.attention import rotary
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.rope import rotary_frequencies
from rmas_jax.prompts import FIRST
from rmas_jax.rounds.stages import prompt_input
from rmas_jax.team import Team


class SlotStates(NamedTuple):
    """Keys, as before their rotation, and values at B x S positions."""

    keys: Any  # [L, B, S, K, H]
    values: Any  # [L, B, S, K, H]


class TextStates(NamedTuple):
    """States of the texts of a batch of messages, one for each vector."""

    states: SlotStates  # S is M
    there: np.ndarray  # [B, M], whether a vector stands for a part of the text
    spread: SlotStates  # [L, K], the variances over all batches


def slot_states(
    agent: Agent, vectors: jax.Array, batch: Messages, valid: jax.Array | None = None
) -> SlotStates:
    """What the solver keeps of vectors [B, S, D] in its slot.

    Args:
      agent: the solver.
      vectors: embeddings of a text, or a message.
      batch: the messages that they are of.
      valid: [B, S], which positions are read; None: all.
    """
    prompt = batch.prompts[evidence.SOLVER]
    read = prompt_input(prompt, batch.asked.prefix, vectors, kind=FIRST)
    slots = np.flatnonzero(np.array(read.slot_index) >= 0)
    end = int(slots[-1]) + 1  # what follows the message does not change its states
    if valid is not None:
        read = read.replace(valid=read.valid.at[:, slots].set(valid))
    read = read.replace(
        ids=read.ids[:, :end], valid=read.valid[:, :end], slot_index=read.slot_index[:end]
    )
    _, cache = read_positions(agent, read)
    block = cache.past[-1]
    keys, values = (x[:, :, :, slots].swapaxes(2, 3) for x in (block.keys, block.values))
    return SlotStates(unrotated(agent.config, keys, block.positions[:, slots]), values)


def unrotated(config: DecoderConfig, keys: jax.Array, positions: jax.Array) -> jax.Array:
    """Keys [L, B, S, K, H] of a cache at positions [B, S], as they are before their rotation.

    Raises:
      ValueError: some layers have no keys, or several.
    """
    if len(keys) != config.num_layers:
        raise ValueError(f"the solver must have keys in each of its layers, got {len(keys)} keys")
    ropes = [(config.rope_theta, config.rope_scaling)] * config.num_layers
    if config.local_rope_theta is not None:
        local = (config.local_rope_theta, config.local_rope_scaling)
        ropes = [
            local if slides else rope
            for rope, slides in zip(ropes, config.sliding_layers, strict=True)
        ]
    angles = [rotary_frequencies(theta, config.rotated_dim, of) for theta, of in ropes]
    factors = [1 / scaling.attention_factor for _, scaling in ropes]
    return jax.vmap(lambda of, *rope: rotary(of, -positions, *rope))(
        keys, jnp.asarray(angles, jnp.float32), jnp.asarray(factors, jnp.float32)
    )


def last_tokens(words: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a text that M vectors stand for.

    Args:
      words: the number of tokens of each word.
      count: M. Up to the number of words, vectors stand for as equal numbers of words; above it,
        for a token each.

    Returns:
      The position of a token for each vector [M], and whether the text has one, [M] bool.
    """
    ends = np.cumsum(words) - 1
    if count > len(ends):
        tokens = np.arange(count)
        return np.minimum(tokens, ends[-1]), tokens <= ends[-1]
    parts = np.round((np.arange(count) + 1) * len(ends) / count).astype(int)
    return ends[parts - 1], np.ones(count, bool)


def text_states(team: Team, known: Known, count: int) -> list[TextStates]:
    """The states of the messages' texts that M vectors stand for, by batch."""
    member = team.members[evidence.SOLVER]
    items, draws, persons = known.asked.shape
    words = [
        words_of(member.tokenizer, example.fields["message"])
        for example in known.asked.examples[:: draws * persons]
    ]
    width = max(sum(map(len, of)) for of in words)
    ids, valid = np.zeros((items, width), np.int32), np.zeros((items, width), bool)
    for row, of in enumerate(words):
        tokens = np.concatenate(of)
        ids[row, : len(tokens)], valid[row, : len(tokens)] = tokens, True
    stood_for = [last_tokens([*map(len, of)], count) for of in words]
    at, there = (np.stack(of) for of in zip(*stood_for, strict=True))
    read = jax.jit(lambda agent, ids, *rest: slot_states(agent, agent.embed(ids), *rest))
    batches, found = known.batches(with_count(team, width)), []
    size = items // len(batches)
    for number, batch in enumerate(tqdm(batches, desc="reading texts")):
        rows = slice(number * size, (number + 1) * size)
        states = read(member.agent, ids[rows], batch, valid[rows])
        places = at[rows][None, :, :, None, None]
        found.append(SlotStates(*(np.take_along_axis(np.asarray(x), places, 2) for x in states)))
    spread = SlotStates(
        *(np.concatenate(of, axis=1).var(axis=(1, 2)).mean(-1) for of in zip(*found, strict=True))
    )
    return [
        TextStates(states, there[number * size : (number + 1) * size], spread)
        for number, states in enumerate(found)
    ]


def words_of(tokenizer: Any, text: str) -> list[np.ndarray]:
    """The tokens of each word of a text."""
    first, *others = text.split(" ")
    return [np.array(ids) for ids in encode_plain(tokenizer, [first, *(f" {x}" for x in others)])]


def states_loss(agent: Agent, vectors: jax.Array, batch: Messages, text: TextStates) -> jax.Array:
    """The share of the variance of the text's states that those of vectors [B, M, D] lack.

    The mean over layers, heads, keys and values: 1 for states that are the mean of all.
    """
    ours = slot_states(agent, vectors, batch)
    weight = text.there[None, :, :, None] / text.there.sum()
    lacking = [
        (((a - b) ** 2).mean(-1) * weight).sum((1, 2)) / spread
        for a, b, spread in zip(ours, text.states, text.spread, strict=True)
    ]
    return jnp.mean(jnp.stack(lacking))
