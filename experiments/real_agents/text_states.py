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
import optax
from tqdm import tqdm

from experiments.real_agents.free_vectors import Questions
from experiments.real_agents.messages import Known, Messages, by_question, with_count
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_positions
from rmas_jax.data import evidence
from rmas_jax.models import Cache, DecoderConfig
from rmas_jax.models.attention import rotary
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.rope import rotary_frequencies
from rmas_jax.prompts import FIRST
from rmas_jax.rounds.stages import prompt_input
from rmas_jax.rounds.supervision import Targets, score_text
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
    agent: Agent, vectors: jax.Array, batch: Messages, valid: jax.Array | np.ndarray | None = None
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
    cache, slots, _ = read_message(agent, read, valid)
    block = cache.past[-1]
    keys, values = (x[:, :, :, slots].swapaxes(2, 3) for x in (block.keys, block.values))
    return SlotStates(unrotated(agent.config, keys, block.positions[:, slots]), values)


def read_message(
    agent: Agent, read: PromptInput, valid: jax.Array | np.ndarray | None
) -> tuple[Cache, np.ndarray, slice]:
    """Reads the body to the end of its slot, whose content does not depend on what follows.

    Returns:
      The cache, the slot's positions, and those of the body that are left.
    """
    slots = np.flatnonzero(np.array(read.slot_index) >= 0)
    if valid is not None:
        read = read.replace(valid=read.valid.at[:, slots].set(valid))
    end = int(slots[-1]) + 1
    start = read.replace(
        ids=read.ids[:, :end], valid=read.valid[:, :end], slot_index=read.slot_index[:end]
    )
    return read_positions(agent, start)[1], slots, slice(end, None)


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


class Texts(NamedTuple):
    """The texts of n messages, and the tokens that M vectors stand for."""

    ids: Any  # [n, W] int32
    valid: Any  # [n, W] bool
    last: Any  # [n, M], positions
    there: Any  # [n, M] bool

    @property
    def is_kept(self) -> np.ndarray:
        """[n, W], the positions that vectors stand for."""
        return (np.arange(self.ids.shape[1]) == self.last[:, :, None]).any(1)

    def by_batch(self, count: int) -> list[Texts]:
        """The same in so many batches."""
        parts = [np.split(x, count) for x in self]
        return [Texts(*of) for of in zip(*parts, strict=True)]


def texts_of(team: Team, asked: Questions, count: int) -> Texts:
    """The messages' texts, for M vectors."""
    tokenizer = team.members[evidence.SOLVER].tokenizer
    items, draws, persons = asked.shape
    words = [
        words_of(tokenizer, example.fields["message"])
        for example in asked.examples[:: draws * persons]
    ]
    width = max(sum(map(len, of)) for of in words)
    ids, valid = np.zeros((items, width), np.int32), np.zeros((items, width), bool)
    for row, of in enumerate(words):
        tokens = np.concatenate(of)
        ids[row, : len(tokens)], valid[row, : len(tokens)] = tokens, True
    last, there = zip(*(last_tokens([*map(len, of)], count) for of in words), strict=True)
    return Texts(ids, valid, np.stack(last), np.stack(there))


def text_states(team: Team, known: Known, count: int) -> list[TextStates]:
    """The states of the messages' texts that M vectors stand for, by batch."""
    texts = texts_of(team, known.asked, count)
    batches, found = known.batches(with_count(team, texts.ids.shape[1])), []
    parts = texts.by_batch(len(batches))
    for batch, part in zip(batches, tqdm(parts, desc="reading texts"), strict=True):
        states = _read(team.agents[evidence.SOLVER], part, batch)
        places = part.last[None, :, :, None, None]
        found.append(SlotStates(*(np.take_along_axis(np.asarray(x), places, 2) for x in states)))
    spread = SlotStates(
        *(
            np.concatenate(of, axis=1)[:, texts.there].var(axis=1).mean(-1)
            for of in zip(*found, strict=True)
        )
    )
    return [
        TextStates(states, part.there, spread) for states, part in zip(found, parts, strict=True)
    ]


@jax.jit
def _read(agent: Agent, texts: Texts, batch: Messages) -> SlotStates:
    return slot_states(agent, agent.embed(texts.ids), batch, texts.valid)


def part_means(team: Team, asked: Questions, count: int) -> np.ndarray:
    """The mean embedding of each of M parts of the messages' texts, [n, M, D]; 0 beyond it."""
    texts = texts_of(team, asked, count)
    embeds = np.asarray(team.agents[evidence.SOLVER].embed(jnp.asarray(texts.ids)), np.float32)
    before = np.pad(texts.last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    at = np.arange(texts.ids.shape[1])
    in_part = (at > before[:, :, None]) & (at <= texts.last[:, :, None])  # [n, M, W]
    return in_part @ embeds / np.maximum(in_part.sum(-1, keepdims=True), 1)


def right_of_kept(team: Team, known: Known, count: int) -> np.ndarray:
    """Whether questions are answered, [n, persons], from M positions of a text that is read whole.

    After the whole text, all positions but those that vectors stand for are hidden: what M states
    of the solver itself can hold.
    """
    texts = texts_of(team, known.asked, count)
    batches = known.batches(with_count(team, texts.ids.shape[1]))
    parts = texts.by_batch(len(batches))
    found = [
        np.asarray(score_of_kept(team.agents[evidence.SOLVER], part, part.is_kept, batch)[1])
        for part, batch in zip(parts, batches, strict=True)
    ]
    return np.concatenate(found).reshape(len(texts.ids), -1)


@jax.jit
def score_of_kept(
    agent: Agent, texts: Texts, is_kept: jax.Array, batch: Messages
) -> tuple[jax.Array, jax.Array]:
    """Losses of answers, and whether they are exact, with these positions [n, W] of texts kept."""
    draw = by_question(batch)
    rows = len(draw.batch) // len(texts.ids)
    ids, valid, kept = (jnp.repeat(x, rows, axis=0) for x in (texts.ids, texts.valid, is_kept))
    answer = jax.tree.map(lambda x: x[:, 0], draw.batch.targets[evidence.SOLVER])
    prompt = draw.batch.prompts[evidence.SOLVER]
    read = prompt_input(prompt, draw.prefix, agent.embed(ids), kind=FIRST)
    cache, slots, after = read_message(agent, read, valid)
    block = cache.past[-1]
    hidden = block.replace(valid=block.valid.at[:, slots].set(valid & kept))
    cache = cache.replace(past=(*cache.past[:-1], hidden))
    rest = Targets(
        jnp.concatenate([read.ids[:, after], answer.ids], axis=1),
        jnp.concatenate([read.valid[:, after], answer.valid], axis=1),
    )
    agent = agent.during("reading")
    upto = rest.ids.shape[1] - 1  # the last token is not read
    states, _ = agent.read(
        agent.embed(rest.ids[:, :upto]), rest.valid[:, :upto], agent.with_room(cache, upto)
    )
    score = score_text(agent, answer, states[:, -answer.ids.shape[1] :])
    return score.loss, score.exact_match


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


def first_tokens(team: Team, asked: Questions, count: int) -> np.ndarray:
    """The embedding of the first token of each of a message's first M words, [n, M, D].

    It is what a sender predicts before the word. 0 beyond the last word.
    """
    tokenizer, agent = team.members[evidence.SOLVER].tokenizer, team.agents[evidence.SOLVER]
    items, draws, persons = asked.shape
    ids, there = np.zeros((items, count), np.int32), np.zeros((items, count, 1), bool)
    for row, example in enumerate(asked.examples[:: draws * persons]):
        of = [word[0] for word in words_of(tokenizer, example.fields["message"])][:count]
        ids[row, : len(of)], there[row, : len(of)] = of, True
    return np.where(there, np.asarray(agent.embed(jnp.asarray(ids)), np.float32), 0)


def words_loss(vectors: jax.Array, words: jax.Array) -> jax.Array:
    """What alignment minimises, 1 - cos and the squared error, but of words [B, M, D].

    The squared error is in units of the words' own mean square. Words that are 0 are not there.
    """
    is_there = jnp.any(words != 0, axis=-1)
    cosine = optax.cosine_similarity(vectors, words, epsilon=1e-8)
    square = jnp.mean(words**2, axis=-1)
    error = jnp.mean((vectors - words) ** 2, axis=-1) / jnp.mean(square, where=is_there)
    return jnp.mean(1 - cosine + error, where=is_there)
