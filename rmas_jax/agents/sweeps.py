"""Parallel thinking: windows of thoughts as fixed points of a causal map, found by sweeps.

    settled   h0             before a window of four
    inputs    h0  x1  x2  x3   each through the inner link; x: a guess, then the sweep before
    outputs   y1  y2  y3  y4   y1 is exact after one sweep, y2 after two, all after four

These are Jacobi iterations (arXiv 2305.10427, of tokens). A sweep reads an agent's weights once for
all positions. It overwrites the keys and values of the sweep before, and starts from the linear
states before the window.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from rmas_jax.agents.agent import Agent
from rmas_jax.config import SweepConfig
from rmas_jax.models import Cache
from rmas_jax.models.cache import stacked

Feed = Callable[..., jax.Array]  # hidden states [B, W, D], arrays of a link -> input embeddings


class Before(struct.PyTreeNode):
    """Thoughts of the round before, as the first guess."""

    thoughts: jax.Array  # [B, M, D]
    is_there: jax.Array | bool  # [] bool; False in the first round


class Window(struct.PyTreeNode):
    """All that a window's thoughts depend on, beside the agent."""

    hidden: jax.Array  # [B, D]; the thought before it
    cache: Cache  # of all positions before it
    links: list[Any]  # arrays of the inner link
    is_thought: jax.Array  # [W] bool; False behind the last thought


class Settled(NamedTuple):
    """Thoughts of a window."""

    thoughts: jax.Array  # [B, W, D]
    cache: Cache  # with its positions, without the past
    sweeps: jax.Array  # [B] int32; until each item was settled


def think_in_windows(
    agent: Agent,
    feed: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    cache: Cache,
    *,
    steps: int,
    how: SweepConfig,
    before: Before | None = None,
) -> tuple[jax.Array, jax.Array, Cache]:
    """Makes the thoughts after the first one.

    A gradient treats each window as settled, and solves the adjoint fixed point by sweeps, too; the
    agent gets none.

    Args:
      agent, feed, hidden, cache: as for `thinking.think`.
      steps: number of these thoughts, at least 1.
      how: windows, sweeps, tolerance.
      before: the first guess; None: the thought before each window.

    Returns:
      [B, steps, D] hidden states, the sweeps [B] over all windows, and the cache.
    """
    agent = agent.during("thinking").storing("all")
    on = agent.partition
    count, width = windows(steps, how.window)
    hidden = on.constrain(hidden, "rows", None)
    inputs = jnp.broadcast_to(hidden[:, None], (len(hidden), width, hidden.shape[1]))
    link, links = _with_its_arrays(feed, inputs)
    is_thought = np.arange(count * width).reshape(count, width) < steps

    def step(carry: Any, scanned: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        hidden, now = carry
        is_thought, guess = scanned
        first = jnp.broadcast_to(hidden[:, None], inputs.shape)
        if before is not None:
            first = jnp.where(before.is_there, guess, first)
        window = Window(hidden, now.replace(past=begun.past), links, is_thought)
        found = settled_window(link, how, agent, window, first)
        hidden = on.constrain(found.thoughts[:, -1], "rows", None)
        return (hidden, found.cache), (found.thoughts, found.sweeps)

    guesses = None
    if before is not None:
        guesses = jnp.pad(before.thoughts[:, 1:], ((0, 0), (0, count * width - steps), (0, 0)))
        guesses = guesses.reshape(-1, count, width, guesses.shape[-1]).swapaxes(0, 1)
    begun = agent.in_steps(agent.with_room(cache, count * width))
    start = (hidden, begun.replace(past=()))
    (_, after), (thoughts, sweeps) = jax.lax.scan(step, start, (is_thought, guesses))
    thoughts = thoughts.swapaxes(0, 1).reshape(len(hidden), count * width, -1)[:, :steps]
    return thoughts, sweeps.sum(0), after.replace(past=cache.past, tail=stacked(after.tail))


def _with_its_arrays(
    feed: Callable[[jax.Array], jax.Array], example: jax.Array
) -> tuple[Feed, list[Any]]:
    """A function of all arrays that another closes over, as a custom gradient needs it."""
    traced = jax.make_jaxpr(feed)(example)

    def link(hidden: jax.Array, *arrays: Any) -> jax.Array:
        (out,) = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, arrays))(hidden)
        return out

    return link, list(traced.consts)


def windows(steps: int, most: int) -> tuple[int, int]:
    """Number and width of the windows of so many steps, as even as can be."""
    count = -(-steps // most)
    return count, -(-steps // count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def settled_window(
    link: Feed, how: SweepConfig, agent: Agent, window: Window, guess: jax.Array
) -> Settled:
    """Sweeps over a window, from a guess [B, W, D]."""

    def again(read: jax.Array, after: Cache) -> tuple[jax.Array, Cache]:
        return _sweep(link, agent, window, read, after)

    most = min(how.most or guess.shape[1], guess.shape[1])
    start = window.cache.replace(past=())
    return Settled(*settle(again, guess, start, most=most, tolerance=how.tolerance))


def _sweep(
    link: Feed, agent: Agent, window: Window, read: jax.Array, over: Cache
) -> tuple[jax.Array, Cache]:
    """Thoughts [B, W, D] -> those that follow from them, and the cache, which overwrites another.

    Of the other cache, keys and values alone are used: as memory, not as content.
    """
    inputs = jnp.concatenate([window.hidden[:, None], read[:, :-1]], axis=1)
    valid = jnp.broadcast_to(window.is_thought[None], read.shape[:2])
    start = window.cache
    tail = start.tail.replace(keys=over.tail.keys, values=over.tail.values)
    out, after = agent.read(link(inputs, *window.links), valid, start.replace(tail=tail))
    out = agent.partition.constrain(out, "rows", None, None)
    return jnp.where(window.is_thought[None, :, None], out, read), after.replace(past=())


def settle(
    sweep: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    guess: jax.Array,
    state: Any,
    *,
    most: int,
    tolerance: float,
) -> tuple[jax.Array, Any, jax.Array]:
    """Repeats a sweep until no item changes by more than a share of itself.

    Args:
      sweep: vectors [B, W, D] and a state -> the next vectors and state.
      guess: the first vectors.
      state: the first state.
      most: number of sweeps, at most.
      tolerance: see `SweepConfig`.

    Returns:
      Vectors and state of the last sweep, and the number of sweeps [B] until each item was settled.
    """

    def is_unsettled(carry: Any) -> jax.Array:
        number, _, _, _, active, _ = carry
        return (number < most) & jnp.any(active)

    def again(carry: Any) -> Any:
        number, read, _, state, active, taken = carry
        out, state = sweep(read, state)
        still = active & (relative_change(read, out) > tolerance)
        # A settled item reads the same again: it does not depend on the others of its batch.
        read = jnp.where(still[:, None, None], out, read)
        return number + 1, read, out, state, still, taken + active

    batch = len(guess)
    start = (0, guess, guess, state, jnp.ones(batch, bool), jnp.zeros(batch, jnp.int32))
    _, _, out, state, _, taken = jax.lax.while_loop(is_unsettled, again, start)
    return out, state, taken


def relative_change(before: jax.Array, received: jax.Array) -> jax.Array:
    """Change of vectors [..., S, D] relative to their norm: [...] float32; 0 between zeros."""
    # In float16, sums of squares of ordinary vectors overflow.
    before, received = before.astype(jnp.float32), received.astype(jnp.float32)
    moved = jnp.linalg.norm(received - before, axis=(-2, -1))
    size = jnp.linalg.norm(received, axis=(-2, -1))
    return jnp.where(moved == 0, 0.0, moved / size)


def _settle_forward(
    link: Feed, how: SweepConfig, agent: Agent, window: Window, guess: jax.Array
) -> tuple[Settled, Any]:
    found = settled_window(link, how, agent, window, guess)
    return found, (agent, window, found.thoughts)


def _settle_backward(link: Feed, how: SweepConfig, kept: Any, toward: Settled) -> Any:
    """The gradient at a fixed point y = f(y, window): u = v + u f_y, and then u f_window.

    f_y leads from later thoughts to earlier ones alone, so that as many sweeps as thoughts are
    exact; n sweeps are the gradient through the last n sweeps of the forward pass.
    """
    agent, window, thoughts = kept

    def swept(read: jax.Array, window: Window) -> tuple[jax.Array, Cache]:
        return _sweep(link, agent, window, read, window.cache)

    _, pull = jax.vjp(swept, thoughts, window)

    def again(adjoint: jax.Array, _: None) -> tuple[jax.Array, None]:
        return toward.thoughts + pull((adjoint, toward.cache))[0], None

    width = thoughts.shape[1]
    adjoint, _, _ = settle(
        again,
        toward.thoughts,
        None,
        most=min(how.gradient or width, width) - 1,
        tolerance=how.tolerance,
    )
    return None, pull((adjoint, toward.cache))[1], None


settled_window.defvjp(_settle_forward, _settle_backward)
