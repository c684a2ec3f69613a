"""Latent thoughts: hidden states that return as the next input embeddings (paper eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmas_jax.agents.agent import Agent
from rmas_jax.models import Cache


def think(
    agent: Agent,
    feed: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    cache: Cache,
    *,
    steps: int,
    truncate_steps: int | None = None,
) -> jax.Array:
    """Makes latent thoughts: each hidden state returns as the next input.

    The first thought is the state at the last prompt token, so M thoughts take M - 1 model steps;
    the last one is not fed back.

    Args:
      agent: the thinker.
      feed: hidden states [B, T, D] -> input embeddings [B, T, D]; the inner link.
      hidden: [B, D] state at the last position read.
      cache: of all positions read; its tail is empty.
      steps: M, at least 1.
      truncate_steps: length of truncated backpropagation, in thoughts: gradients stop at state and
        cache after each such number. None: no truncation.

    Returns:
      [B, M, D] hidden states.
    """
    if steps == 1:  # no step to compile: the tail has no room
        return hidden[:, None]
    agent = agent.during("thinking")
    on = agent.partition
    valid = on.constrain(jnp.ones((hidden.shape[0], 1), bool), "batch", None)
    hidden = on.constrain(hidden, "rows", None)

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        thought = carry[0]
        if truncate_steps is not None:
            is_cut = (index + 1) % truncate_steps == 0
            carry = jax.tree.map(lambda x: jnp.where(is_cut, jax.lax.stop_gradient(x), x), carry)
        hidden, now = carry
        out, now = agent.read(feed(hidden[:, None]), valid, now.replace(past=cache.past))
        return (on.constrain(out[:, 0], "rows", None), now.replace(past=())), thought

    # The finished blocks are closed over: only a tail for the steps is carried.
    start = (hidden, agent.with_room(cache, steps - 1).replace(past=()))
    (last, _), thoughts = jax.lax.scan(step, start, jnp.arange(steps - 1))
    made = jnp.concatenate([thoughts.swapaxes(0, 1), last[:, None]], axis=1)
    return on.constrain(made, "batch", None, None)
