"""Reading a prompt: the prefix once for all rounds, then the body with vectors in its slots.

prefix            body
. . q q q q q     . l l | z z z z | . s s s      . padding, q prefix, l lead, z slot, s suffix

An agent with a soft prompt reads its vectors at the start of the prefix: v v v | . . q q q q q.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.models import Cache, repeat_rows


class PromptInput(struct.PyTreeNode):
    """An agent's whole input before it writes: its prompt with filled slots."""

    prefix: Cache  # from `read_prefix`
    ids: jax.Array  # [B, T] int32; the body; undefined at latents
    valid: jax.Array  # [B, T] bool
    received: jax.Array  # [B, S, D] latents of all slots; S is 0 where the slots hold tokens
    slot_index: tuple[int, ...] = struct.field(pytree_node=False)  # [T], see `place`

    def followed_by(self, ids: jax.Array, valid: jax.Array) -> PromptInput:
        """The same with tokens [B, W] after the body."""
        return self.replace(
            ids=jnp.concatenate([self.ids, ids], axis=1),
            valid=jnp.concatenate([self.valid, valid], axis=1),
            slot_index=self.slot_index + (-1,) * ids.shape[1],
        )


class SharedStart(struct.PyTreeNode):
    """Tokens with which the prompts of many questions begin, read once for all of them.

    s s s | . . q q q      s shared, q prefix of a row
    _ _ _ | s S S q q      _ a row whose prompt begins in another way: its prefix has all
    """

    cache: Cache  # of one row, from `read_start`
    is_there: jax.Array  # [B] bool


def read_start(agent: Agent, ids: jax.Array) -> Cache:
    """Reads the shared start [1, P] of prompts, at least one token; see `SharedStart`."""
    agent = agent.during("reading")
    _, cache = agent.read(agent.embed(ids), jnp.ones(ids.shape, bool), _start(agent, *ids.shape))
    return agent.seal(cache, 0)


def read_prefix(
    agent: Agent, ids: jax.Array, valid: jax.Array, start: SharedStart | None = None
) -> Cache:
    """Reads the part of a prompt that is the same in every round.

    Args:
      agent: the reader.
      ids: [B, P] token ids, padded on the left.
      valid: [B, P] bool.
      start: tokens before the prefix; None: there are none.

    Returns:
      A cache whose finished blocks are the soft prompt, if the agent has one, the shared start, if
      there is one, and the prefix.
    """
    agent = agent.during("reading")
    embeds = agent.embed(ids)
    cache = _start(agent, *ids.shape) if start is None else _after(agent, start, ids.shape[1])
    if ids.shape[1]:  # else the first and later prompts have no common start
        _, cache = agent.read(embeds, valid, cache)
    return agent.seal(cache, 0)


def _start(agent: Agent, batch: int, positions: int) -> Cache:
    """A cache with room for `positions`, behind the soft prompt, which is alike in all rows."""
    if agent.soft_prompt is None:
        return agent.empty_cache(batch, positions)
    vectors = agent.soft_prompt[None].astype(agent.dtype)
    _, cache = agent.read(vectors, jnp.ones(vectors.shape[:2], bool))
    cache = repeat_rows(cache, batch, partition=agent.partition)
    return agent.seal(cache, positions)


def _after(agent: Agent, start: SharedStart, positions: int) -> Cache:
    """A cache with room for `positions`, behind the shared start of the rows that have it."""
    there, on = start.is_there, agent.partition
    batch = len(there)
    cache = repeat_rows(start.cache, batch, partition=on)
    without = _start(agent, batch, 0)
    *before, last = cache.past

    def chosen(state: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(there.reshape(1, batch, *(1,) * (state.ndim - 2)), state, other)

    cache = cache.replace(
        past=(*before, last.replace(valid=last.valid & there[:, None])),
        next_position=jnp.where(there, cache.next_position, without.next_position),
        state=jax.tree.map(chosen, cache.state, without.state),
    )
    return agent.with_room(cache, positions)


def place(embeds: jax.Array, received: jax.Array, slot_index: tuple[int, ...]) -> jax.Array:
    """Puts received vectors at a body's slots.

    Args:
      embeds: [B, T, D] embeddings of the body's tokens.
      received: [B, S, D] vectors of all slots, in order.
      slot_index: [T] index of the received vector at a position, -1 for a token.

    Raises:
      ValueError: the numbers of vectors and places differ (a gather would repeat the last vector).
    """
    places = sum(number >= 0 for number in slot_index)
    if places != received.shape[1] or max(slot_index, default=-1) >= received.shape[1]:
        raise ValueError(
            f"a prompt's slots must hold {received.shape[1]} vectors, got {places}: encode it with "
            "slot_width=latent_steps"
        )
    if not places:
        return embeds
    index = jnp.asarray(slot_index)
    vectors = received[:, jnp.maximum(index, 0)].astype(embeds.dtype)
    return jnp.where((index >= 0)[None, :, None], vectors, embeds)


def read_body(agent: Agent, prompt: PromptInput) -> tuple[jax.Array, Cache]:
    """Reads the body after the prefix: `[lead | slots | suffix]`.

    Args:
      agent: the reader.
      prompt: the body's last position is valid in every row; the prefix is not changed, so that
        every round can start from it.

    Returns:
      The last hidden state [B, D] and a cache with an empty tail, without room.
    """
    hidden, cache = read_positions(agent, prompt)
    return hidden[:, -1], cache


def read_positions(agent: Agent, prompt: PromptInput) -> tuple[jax.Array, Cache]:
    """As `read_body`, with the hidden states at all positions of the body [B, T, D]."""
    agent = agent.during("reading")
    embeds = place(agent.embed(prompt.ids), prompt.received, prompt.slot_index)
    cache = agent.with_room(prompt.prefix, prompt.ids.shape[1])
    hidden, cache = agent.read(embeds, prompt.valid, cache)
    return hidden, agent.seal(cache, 0)
