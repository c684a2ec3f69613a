"""Decoding in a pool of rows: a row whose text has ended takes the next prompt.

A batch of `sampling.speak` waits for its longest text. Here the rows of a pool are independent:
each has its own prompt, length, PRNG key and count of tokens, and `fill` puts another prompt into a
row that has ended, while the others go on. All rows share the slot that a step writes, in a ring of
as many slots as a text can need; a row starts at any slot, as it sees only slots of its own:

    ring, step 9    a a a d d d     row 0: text d began at step 7, over text a of the same row
                    b b b b b b     row 1: text b is still being written
                    c c _ _ e e     row 2: c has ended (its slots are invalid), e began at step 8

A text is that of `speak` for the same prompt, key and settings, up to rounding: sums over the cache
have another order.

On a mesh every array of a pool lies where those of begun texts do (`_placed`), so that each program
takes the outputs of the others, planned or not, without compiling anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body
from rmas_jax.agents.sampling import DecodeState, Ending, advance
from rmas_jax.models import Decoder
from rmas_jax.models.cache import Block, Cache, empty_block, placed_block, placed_state
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.partition import Partition
from rmas_jax.sharding import with_shardings

FREE_SHARE = 8  # rows are filled once an eighth of them is free


def filled_at_once(batch: int) -> int:
    """Rows that one `fill` takes at most, of a pool of B rows."""
    return -(-batch // FREE_SHARE)


class Begun(struct.PyTreeNode):
    """B prompts that have been read, and the first tokens of their texts."""

    past: tuple[Block, ...]  # the prompts
    text: DecodeState  # its cache has neither past nor tail
    keys: jax.Array | None  # [B] PRNG keys


class Pool(struct.PyTreeNode):
    """B rows, each with a text or free: a free row counts as ended."""

    begun: Begun  # `text.step` counts the steps of the pool
    ring: Block  # keys and values of the texts


@jax.jit
def read_prompts(agent: Agent, prompt: PromptInput) -> tuple[jax.Array, Cache]:
    """The last hidden state [B, D] and the cache of prompts; rollouts share them."""
    return read_body(agent, prompt)


@functools.partial(jax.jit, static_argnames=("end_tokens", "max_tokens", "sampling"))
def begin(
    agent: Agent,
    hidden: jax.Array,
    cache: Cache,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
    sampling: SamplingConfig,
    keys: jax.Array | None = None,
    stops: jax.Array | None = None,
) -> Begun:
    """Chooses the first tokens after prompts; see `sampling.speak` for the settings."""
    agent = agent.during("writing").with_unembedding()
    batch = hidden.shape[0]
    penalises = sampling.repetition_penalty != 1
    text = DecodeState(
        tokens=jnp.zeros((batch, max_tokens), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        step=jnp.zeros((), jnp.int32),
        cache=cache.replace(past=()),
        finite=jnp.ones(batch, bool),
        seen=jnp.zeros((batch, agent.config.vocab_size), bool) if penalises else None,
        stop_state=None if stops is None else jnp.zeros(batch, jnp.int32),
    )
    ending = _ending(end_tokens, max_tokens, batch, stops)
    text = _write(agent, hidden, text, sampling=sampling, keys=keys, ending=ending)
    return _placed(Begun(cache.past, text, keys), agent.partition)


def pool_shapes(decoder: Decoder, begun: Begun) -> Pool:
    """The shapes and places of a pool for prompts like these: arrays, or their shapes."""
    batch, width = begun.text.tokens.shape
    # A text's last token is not read, and the one before it takes the slot of the first one once
    # that has been read for the last time. A tail of a single slot would count as empty.
    slots, block = max(2, width - 2), begun.past[-1]
    empty = functools.partial(
        empty_block,
        decoder.config,
        batch,
        slots,
        dtype=block.keys.dtype,
        partition=decoder.partition,
    )
    ring = with_shardings(jax.eval_shape(empty), jax.tree.map(_sharding, block))
    return Pool(with_shardings(begun, jax.tree.map(_sharding, begun)), ring)


def empty_pool(decoder: Decoder, like: Begun) -> Pool:
    """A pool of free rows, for prompts of these shapes."""
    shapes, tree = jax.tree.flatten(pool_shapes(decoder, like))
    return _empty(tuple(shapes), tree)()


@functools.lru_cache(maxsize=8)
def _empty(shapes: tuple[jax.ShapeDtypeStruct, ...], tree: Any) -> Callable[[], Pool]:
    """A jitted function that makes a pool of free rows."""

    def make() -> Pool:
        pool = jax.tree.unflatten(tree, map(jnp.zeros_like, shapes))
        text = pool.begun.text
        free = text.replace(done=jnp.ones_like(text.done))
        return pool.replace(begun=pool.begun.replace(text=free))

    return jax.jit(make, out_shardings=jax.tree.unflatten(tree, map(_sharding, shapes)))


def _sharding(array: Any) -> Any:
    return getattr(array, "sharding", None)  # a traced array has none


def _placed(begun: Begun, on: Partition) -> Begun:
    """Begun texts with their rows where those of a batch lie."""

    def by_row(x: jax.Array) -> jax.Array:
        return on.constrain(x, *("batch", None)[: x.ndim])

    cache = begun.text.cache
    rows = jax.tree.map(by_row, begun.replace(past=(), text=begun.text.replace(cache=None)))
    cache = cache.replace(
        tail=placed_block(cache.tail, on),
        used=on.constrain(cache.used),
        next_position=by_row(cache.next_position),
        state=placed_state(cache.state, on),
    )
    past = tuple(placed_block(block, on) for block in begun.past)
    return rows.replace(past=past, text=rows.text.replace(cache=cache))


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="pool")
def fill(decoder: Decoder, pool: Pool, begun: Begun, source: jax.Array, place: jax.Array) -> Pool:
    """Puts begun texts into rows of a pool, in place.

    Layer by layer: where rows are split, the K new ones of a layer meet on every device.

    Args:
      decoder: of the agent.
      pool: B rows.
      begun: B texts.
      source: [K] rows of `begun`; see `filled_at_once`.
      place: [K] distinct rows of the pool; B puts a text nowhere.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[place].set(jnp.take(new, source, axis=0, mode="clip"), mode="drop")

    def by_layer(old: jax.Array, new: jax.Array) -> jax.Array:
        def layer(i: jax.Array, old: jax.Array) -> jax.Array:
            taken = jnp.take(new[i], source, axis=0, mode="clip")
            return old.at[i, place].set(taken, mode="drop")

        return jax.lax.fori_loop(0, len(old), layer, old)

    def block(old: Block, new: Block) -> Block:
        return Block(
            keys=by_layer(old.keys, new.keys),
            values=by_layer(old.values, new.values),
            valid=put(old.valid, new.valid),
            positions=put(old.positions, new.positions),
        )

    def rows(old: Any, new: Any) -> Any:
        return jax.tree.map(put, old, new)

    old, new = pool.begun.text, begun.text
    text = DecodeState(
        tokens=rows(old.tokens, new.tokens),
        lengths=rows(old.lengths, new.lengths),
        done=rows(old.done, new.done),
        step=old.step,
        cache=old.cache.replace(
            next_position=rows(old.cache.next_position, new.cache.next_position),
            state=jax.tree.map(by_layer, old.cache.state, new.cache.state),
        ),
        finite=rows(old.finite, new.finite),
        seen=rows(old.seen, new.seen),
        stop_state=rows(old.stop_state, new.stop_state),
    )
    past = tuple(map(block, pool.begun.past, begun.past))
    ring = pool.ring.replace(valid=pool.ring.valid.at[place].set(False, mode="drop"))
    filled = Begun(past, text, rows(pool.begun.keys, begun.keys))
    return Pool(_placed(filled, decoder.partition), placed_block(ring, decoder.partition))


@functools.partial(
    jax.jit, static_argnames=("end_tokens", "max_tokens", "sampling"), donate_argnames="pool"
)
def run(
    agent: Agent,
    pool: Pool,
    ended: jax.Array,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
    sampling: SamplingConfig,
    stops: jax.Array | None = None,
) -> Pool:
    """Writes until this many rows [] have ended, or are free; settings as in `begin`."""
    agent = agent.during("writing").with_unembedding()
    past, keys = pool.begun.past, pool.begun.keys
    ending = _ending(end_tokens, max_tokens, len(pool.begun.text.done), stops)
    slots = pool.ring.valid.shape[1]

    def running(carry: tuple[DecodeState, Block]) -> jax.Array:
        return jnp.sum(carry[0].done) < ended

    def step(carry: tuple[DecodeState, Block]) -> tuple[DecodeState, Block]:
        text, ring = carry
        last = jnp.maximum(text.lengths - 1, 0)[:, None]
        embeds = agent.embed(jnp.take_along_axis(text.tokens, last, axis=1))
        cache = text.cache.replace(past=past, tail=ring, used=text.step % slots)
        # A row that has ended reads padding, which no position attends to.
        hidden, cache = agent.read(embeds, ~text.done[:, None], cache)
        text = text.replace(
            cache=text.cache.replace(next_position=cache.next_position, state=cache.state)
        )
        text = _write(agent, hidden[:, 0], text, sampling=sampling, keys=keys, ending=ending)
        return text, cache.tail

    text, ring = jax.lax.while_loop(running, step, (pool.begun.text, pool.ring))
    return Pool(_placed(Begun(past, text, keys), agent.partition), ring)


def _ending(
    end_tokens: tuple[int, ...], max_tokens: int, batch: int, stops: jax.Array | None
) -> Ending:
    limits = jnp.full(batch, max_tokens, jnp.int32)
    return Ending(jnp.asarray(end_tokens, jnp.int32), limits, stops)


def _write(agent: Agent, hidden: jax.Array, text: DecodeState, **settings: Any) -> DecodeState:
    """Adds the next token of every row to its text, at the row's own length."""
    width = text.tokens.shape[1]
    place = jnp.where(text.done, width, text.lengths)  # rows that have ended: out of bounds
    after, token, _ = advance(agent, hidden, text, text.lengths, **settings)
    tokens = text.tokens.at[jnp.arange(len(place)), place].set(token, mode="drop")
    return after.replace(tokens=tokens, step=text.step + 1)
