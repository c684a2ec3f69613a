"""Decoding text: a `lax.while_loop` that stops when every row has stopped."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.models import Cache, Decoder


@struct.dataclass
class Speech:
    """State of the decode loop."""

    tokens: jax.Array  # [B, W] int32; what was written, 0 after a row's end
    lengths: jax.Array  # [B] int32; tokens written, the end token included
    done: jax.Array  # [B] bool; the row has written an end token
    step: jax.Array  # [] int32; columns of `tokens` written; each but the first cost a model step
    cache: Cache  # its tail has room for W - 1 positions


def speak(
    model: Decoder,
    params: Any,
    hidden: jax.Array,
    cache: Cache,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
) -> Speech:
    """Writes greedily until every row has ended.

    Args:
      model: the agent's decoder.
      params: its parameters.
      hidden: [B, D] state at the last position read.
      cache: what was read, with room for `max_tokens` - 1 positions.
      end_tokens: ids that end a row.
      max_tokens: W, tokens at most; at least 1.
    """
    ends = jnp.asarray(end_tokens, jnp.int32)
    finished = cache.past

    def choose(hidden: jax.Array, done: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next token [B] and which rows have ended with it [B]."""
        logits = model.apply({"params": params}, hidden[:, None], method="unembed")
        token = jnp.where(done, 0, jnp.argmax(logits[:, 0], axis=-1)).astype(jnp.int32)
        return token, done | jnp.any(token[:, None] == ends[None, :], axis=1)

    def running(state: Speech) -> jax.Array:
        return (state.step < max_tokens) & ~jnp.all(state.done)

    def write(state: Speech) -> Speech:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        embeds = model.apply({"params": params}, last, method="embed")
        # A row that has ended reads padding: its later positions are never looked at.
        hidden, cache = model.apply(
            {"params": params}, embeds, ~state.done[:, None], state.cache.replace(past=finished)
        )
        token, done = choose(hidden[:, 0], state.done)
        return Speech(
            tokens=state.tokens.at[:, state.step].set(token),
            lengths=state.lengths + ~state.done,
            done=done,
            step=state.step + 1,
            cache=cache.replace(past=()),
        )

    batch = hidden.shape[0]
    token, done = choose(hidden, jnp.zeros(batch, bool))
    start = Speech(
        tokens=jnp.zeros((batch, max_tokens), jnp.int32).at[:, 0].set(token),
        lengths=jnp.ones(batch, jnp.int32),
        done=done,
        step=jnp.ones((), jnp.int32),
        cache=cache.replace(past=()),  # finished blocks are closed over, not carried
    )
    if max_tokens == 1:  # no step to compile, and no room for one
        return start
    return jax.lax.while_loop(running, write, start)
