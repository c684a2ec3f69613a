"""Latent thoughts: hidden states that return as the next input embeddings (paper eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sweeps import Before, think_in_windows
from rmas_jax.config import SweepConfig
from rmas_jax.models import Cache
from rmas_jax.models.cache import stacked


class Rollout(NamedTuple):
    """Latent thoughts, and what they leave."""

    thoughts: jax.Array  # [B, M, D] hidden states
    cache: Cache  # also of the thoughts that were fed back; undefined after `segments`
    sweeps: jax.Array | None = None  # [B] int32 of parallel thinking; None: sequential


@jax.named_scope("think")
def think(
    agent: Agent,
    feed: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    cache: Cache,
    *,
    steps: int,
    sweeps: SweepConfig | None = None,
    before: Before | None = None,
    truncate_steps: int | None = None,
    recompute: bool = False,
) -> Rollout:
    """Makes latent thoughts: each hidden state returns as the next input.

    The first thought is the state at the last prompt token, so M thoughts take M - 1 model steps;
    the last one is not fed back. Parallel thinking gives the same thoughts up to its tolerance.

    Args:
      agent: the thinker.
      feed: hidden states [B, T, D] -> input embeddings [B, T, D]; the inner link.
      hidden: [B, D] state at the last position read.
      cache: of all positions read; its tail is empty.
      steps: M, at least 1.
      sweeps: of parallel thinking; None: one thought after another.
      before: first guess of the sweeps, see `think_in_windows`.
      truncate_steps: of sequential thinking: length of truncated backpropagation, in thoughts:
        gradients stop at state and cache after each such number. None: no truncation.
      recompute: of sequential thinking: whether a gradient recomputes the steps in `segments`,
        which takes less memory; if not, it stores the products of every layer and step.
    """
    if steps == 1:  # no step to compile: the tail has no room
        none = None if sweeps is None else jnp.zeros(len(hidden), jnp.int32)
        return Rollout(hidden[:, None], cache, none)
    if sweeps is not None:
        later, taken, cache = think_in_windows(
            agent, feed, hidden, cache, steps=steps - 1, how=sweeps, before=before
        )
        return Rollout(jnp.concatenate([hidden[:, None], later], axis=1), cache, taken)
    agent = agent.during("thinking")
    if not recompute:
        agent = agent.storing("all")
    on = agent.partition
    valid = on.constrain(jnp.ones((hidden.shape[0], 1), bool), "batch", None)
    hidden = on.constrain(hidden, "rows", None)

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        thought = carry[0]
        if truncate_steps is not None:
            is_cut = (index + 1) % truncate_steps == 0
            carry = jax.tree.map(lambda x: jnp.where(is_cut, jax.lax.stop_gradient(x), x), carry)
        hidden, now = carry
        out, now = agent.read(feed(hidden[:, None]), valid, now.replace(past=begun.past))
        return (on.constrain(out[:, 0], "rows", None), now.replace(past=())), thought

    # The finished blocks are closed over: only a tail for the steps is carried.
    begun = agent.in_steps(agent.with_room(cache, steps - 1))
    start = (hidden, begun.replace(past=()))
    count, length = segments(steps - 1) if recompute else (1, steps - 1)
    (last, after), thoughts = _scan_segments(step, start, count, length)
    made = jnp.concatenate([thoughts.swapaxes(0, 1), last[:, None]], axis=1)[:, :steps]
    return Rollout(
        on.constrain(made, "batch", None, None),
        after.replace(past=cache.past, tail=stacked(after.tail)),
    )


def segments(steps: int) -> tuple[int, int]:
    """Number and length of the segments in which a gradient recomputes steps.

    It stores the carry at the start of each segment, and one of each step of the segment that it
    recomputes: two square roots in place of all. Steps after the last one have no effect.

        19 steps:  [0 1 2 3 4] [5 6 7 8 9] [10 11 12 13 14] [15 16 17 18 -]
    """
    if steps < 15:  # two square roots of fewer are more than half
        return 1, steps

    def number(length: int) -> int:
        return -(-steps // length)

    def cost(length: int) -> int:  # stored carries, and steps after the last one
        return number(length) + length + number(length) * length - steps

    length = min(range(1, steps + 1), key=cost)
    return number(length), length


def _scan_segments(step: Any, start: Any, count: int, length: int) -> tuple[Any, Any]:
    """`lax.scan` over the indices of steps, in recomputed segments if there are several."""

    def segment(carry: Any, indices: jax.Array) -> tuple[Any, Any]:
        return jax.lax.scan(step, carry, indices)

    indices = jnp.arange(count * length)
    if count == 1:
        return segment(start, indices)
    recomputed = jax.checkpoint(segment, prevent_cse=False)
    last, made = jax.lax.scan(recomputed, start, indices.reshape(count, length))
    return last, made.reshape(count * length, *made.shape[2:])
