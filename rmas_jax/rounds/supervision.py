"""Supervision: target texts of roles, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import FrozenDict

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_positions
from rmas_jax.models import Cache

LOGITS_AT_ONCE = 2**26  # on a device, of [B, C, V] in float32: 256 MiB


class Targets(struct.PyTreeNode):
    """Target texts of one role, one per round."""

    ids: Any  # [B, R, W] int32, padded on the right
    valid: Any  # [B, R, W] bool


class Supervision(struct.PyTreeNode):
    """Target texts, the rounds that score them, and teacher forcing."""

    targets: Mapping[str, Targets]  # by role; teacher forcing needs those of all, with W >= M
    # Role -> for each round, whether its text has a loss; missing roles have none. None: all roles,
    # in all rounds. A text is read only as far as its loss or teacher-forced thoughts need it.
    scored: FrozenDict[str, tuple[bool, ...]] | None = struct.field(pytree_node=False, default=None)
    # Thoughts are the states over the role's text instead of a rollout (upstream's outer loop, but
    # from the last prompt token on, as in inference).
    teacher_forced: bool = struct.field(pytree_node=False, default=False)
    # With `teacher_forced`, the answerer's thoughts are still a rollout, so that its feedback does
    # not depend on its text.
    rollout_feedback: bool = struct.field(pytree_node=False, default=False)
    # Whether `Rounds.thoughts` keeps the thoughts of roles with a text.
    keep_thoughts: bool = struct.field(pytree_node=False, default=False)

    def forces(self, role: str, *, is_answerer: bool) -> bool:
        """Whether a role's thoughts come from its text."""
        return self.teacher_forced and not (self.rollout_feedback and is_answerer)


NO_SUPERVISION = Supervision(targets={})


class TextScore(struct.PyTreeNode):
    """An agent's score on a text."""

    loss: jax.Array  # [B] mean cross-entropy of its tokens
    exact_match: jax.Array  # [B] bool; greedy decoding writes the text


def read_with_text(
    agent: Agent, prompt: PromptInput, target: Targets, *, upto: int
) -> tuple[jax.Array, Cache]:
    """Reads a prompt and the start of a given text in one pass.

    Args:
      agent: the reader.
      prompt: before the text.
      target: the text, [B, W].
      upto: number of tokens to have states of, from 1 to W.

    Returns:
      States [B, upto, D] that predict the first tokens, the first that of the last prompt token;
      and the cache, without room.
    """
    start = prompt.followed_by(target.ids[:, : upto - 1], target.valid[:, : upto - 1])
    hidden, cache = read_positions(agent, start)
    return hidden[:, -upto:], cache


def read_text(agent: Agent, target: Targets, states: jax.Array, cache: Cache) -> jax.Array:
    """Reads the rest of a given text, after its prompt or from where reading stopped.

    Args:
      agent: the reader.
      target: the text, [B, W].
      states: [B, w, D] that predict its first w tokens; the first is that of the last prompt token.
      cache: of the prompt and the w - 1 tokens already read; its tail is empty.

    Returns:
      States [B, W, D] that predict all tokens.
    """
    rest = slice(states.shape[1] - 1, target.ids.shape[1] - 1)
    ids, valid = target.ids[:, rest], target.valid[:, rest]
    if ids.shape[1] == 0:
        return states
    agent = agent.during("reading")
    read, _ = agent.read(agent.embed(ids), valid, agent.with_room(cache, ids.shape[1]))
    return jnp.concatenate([states, read], axis=1)


def score_text(agent: Agent, target: Targets, states: jax.Array) -> TextScore:
    """Scores a text [B, W] under the states [B, W, D] that predict each of its tokens."""
    losses, hits = token_losses(agent, states, target.ids)
    losses = (losses * target.valid).sum(1) / target.valid.sum(1)
    return TextScore(losses, jnp.all(hits | ~target.valid, axis=1))


def token_losses(agent: Agent, states: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of tokens [B, W] under the states [B, W, D] before them, and greedy hits.

    At most `LOGITS_AT_ONCE` logits exist at a time on a device, also in the backward pass: a scan
    handles longer texts in chunks of positions, and recomputes a chunk's logits for its gradient.
    Logits stay split over rows and vocabulary.
    """
    agent = agent.during("reading").with_unembedding()
    batch, width = ids.shape
    vocab, on = agent.config.vocab_size, agent.partition
    at_once = batch // on.parts("rows", batch) * (vocab // on.parts("vocab", vocab))
    chunk = min(width, max(1, LOGITS_AT_ONCE // at_once))

    def of_chunk(_: None, scanned: Any) -> tuple[None, tuple[jax.Array, jax.Array]]:
        states, ids = scanned
        logits = agent.unembed(states)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return None, (losses, jnp.argmax(logits, axis=-1) == ids)

    if chunk == width:
        return of_chunk(None, (states, ids))[1]
    count = -(-width // chunk)

    def split(x: jax.Array) -> jax.Array:  # [B, W, ...] -> [chunks, B, C, ...]
        padding = [(0, 0), (0, count * chunk - width)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, count, chunk, *x.shape[2:]).swapaxes(0, 1)

    step = jax.checkpoint(of_chunk, prevent_cse=False)
    _, out = jax.lax.scan(step, None, (split(states), split(ids)))
    return tuple(x.swapaxes(0, 1).reshape(batch, -1)[:, :width] for x in out)
