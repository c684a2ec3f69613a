"""Decoding in a pool of rows: a row whose text has ended takes the next prompt.

A batch of `sampling.speak` waits for its longest text. Here the rows of a pool are independent:
each has its own prompt, length, PRNG key and rules, and `fill` puts another prompt into a row that
has ended, while the others go on. Each row writes its text into slots of its own, from the first:

    slots           0 1 2 3 4 5
    row 0           d d d _ _ _      text d began when text a of this row had ended
    row 1           b b b b b _      text b is still being written
    row 2           e e _ _ _ _

A text is that of `speak` for the same prompt, key and settings. No row depends on the others, or on
the time at which it was filled: its products and sums have one order.

On a mesh every array of a pool lies where those of begun texts do (`_placed`), so that each program
takes the outputs of the others, planned or not, without compiling anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body
from rmas_jax.agents.sampling import DecodeState, Ending, RowRules, advance
from rmas_jax.models import Decoder
from rmas_jax.models.cache import Block, Cache, empty_block, placed_block, placed_state
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.partition import Partition
from rmas_jax.sharding import with_shardings

FREE_SHARE = 8  # rows are filled once an eighth of them is free
ALL_STEPS = np.int32(2**31 - 1)


def filled_at_once(rows: int) -> int:
    """Rows that one `fill` takes at most, of a pool of B rows."""
    return -(-rows // FREE_SHARE)


class Rows(struct.PyTreeNode):
    """B rows, each with a prompt that has been read and its text, or free, which is as ended."""

    past: tuple[Block, ...]  # the prompts
    text: DecodeState  # its cache has no past; its tail has the texts, and in a pool room for them
    keys: jax.Array | None  # [B] PRNG keys
    rules: RowRules | None  # None: all rows have those of the call


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
    rules: RowRules | None = None,
) -> Rows:
    """Chooses the first tokens after prompts; see `sampling.speak` for the settings.

    With rules of rows, log probabilities of tokens are kept.
    """
    agent = agent.during("writing").with_unembedding()
    batch = hidden.shape[0]
    penalises = sampling.repetition_penalty != 1
    text = DecodeState(
        tokens=jnp.zeros((batch, max_tokens), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        step=jnp.zeros((), jnp.int32),
        cache=cache.replace(past=(), used=jnp.zeros(batch, jnp.int32)),
        finite=jnp.ones(batch, bool),
        seen=jnp.zeros((batch, agent.config.vocab_size), bool) if penalises else None,
        stop_state=None if stops is None else jnp.zeros(batch, jnp.int32),
        logprobs=None if rules is None else jnp.zeros((batch, max_tokens), jnp.float32),
    )
    rows = Rows(cache.past, text, keys, rules)
    ending = _ending(rows, end_tokens, max_tokens, stops)
    text = _write(agent, hidden, text, rows, sampling=sampling, ending=ending)
    return _placed(rows.replace(text=text), agent.partition)


def pool_shapes(
    decoder: Decoder, begun: Rows, *, rows: int | None = None, widths: Sequence[int] | None = None
) -> Rows:
    """The shapes and places of a pool for begun texts like these: arrays, or their shapes.

    Args:
      decoder: of the agent.
      begun: B texts.
      rows: of the pool; None: B.
      widths: slots of the blocks of prompts, at least those of `begun`; None: the same.
    """
    rows = len(begun.text.done) if rows is None else rows
    widths = [block.valid.shape[1] for block in begun.past] if widths is None else widths
    # A text's last token is not read; a tail of a single slot would count as empty.
    slots, last = max(2, begun.text.tokens.shape[1] - 1), begun.past[-1]

    def sized(array: Any, axis: int, size: int) -> jax.ShapeDtypeStruct:
        shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=_sharding(array))

    def block(old: Block, width: int) -> Block:
        keys, values = (sized(sized(x, 1, rows), 3, width) for x in (old.keys, old.values))
        valid, positions = (sized(sized(x, 0, rows), 1, width) for x in (old.valid, old.positions))
        return Block(keys, values, valid, positions)  # type: ignore[arg-type]

    def by_row(tree: Any, axis: int = 0) -> Any:
        return jax.tree.map(lambda x: sized(x, axis, rows), tree)

    cache = begun.text.cache
    empty = functools.partial(
        empty_block,
        decoder.config,
        rows,
        slots,
        dtype=last.keys.dtype,
        partition=decoder.partition,
    )
    tail = with_shardings(jax.eval_shape(empty), jax.tree.map(_sharding, last))
    text = by_row(begun.text.replace(cache=None, step=None)).replace(
        step=with_shardings(begun.text.step, _sharding(begun.text.step)),
        cache=Cache(
            past=(),
            tail=tail,
            used=by_row(cache.used),
            next_position=by_row(cache.next_position),
            state=by_row(cache.state, axis=1),
        ),
    )
    past = tuple(block(*pair) for pair in zip(begun.past, widths, strict=True))
    return Rows(past, text, by_row(begun.keys), by_row(begun.rules))


def empty_pool(
    decoder: Decoder, like: Rows, *, rows: int | None = None, widths: Sequence[int] | None = None
) -> Rows:
    """A pool of free rows, for begun texts like these; see `pool_shapes`."""
    shapes, tree = jax.tree.flatten(pool_shapes(decoder, like, rows=rows, widths=widths))
    return _empty(tuple(shapes), tree)()


@functools.lru_cache(maxsize=8)
def _empty(shapes: tuple[jax.ShapeDtypeStruct, ...], tree: Any) -> Callable[[], Rows]:
    """A jitted function that makes a pool of free rows."""

    def make() -> Rows:
        pool = jax.tree.unflatten(tree, map(jnp.zeros_like, shapes))
        return pool.replace(text=pool.text.replace(done=jnp.ones_like(pool.text.done)))

    return jax.jit(make, out_shardings=jax.tree.unflatten(tree, map(_sharding, shapes)))


def _sharding(array: Any) -> Any:
    return getattr(array, "sharding", None)  # a traced array has none


def _placed(rows: Rows, on: Partition) -> Rows:
    """The same with rows where those of a batch lie."""

    def by_row(x: jax.Array) -> jax.Array:
        return on.constrain(x, *("batch", None)[: x.ndim])

    cache = rows.text.cache
    past = tuple(placed_block(block, on) for block in rows.past)
    rows = jax.tree.map(by_row, rows.replace(past=(), text=rows.text.replace(cache=None)))
    cache = cache.replace(
        tail=placed_block(cache.tail, on),
        used=by_row(cache.used),
        next_position=by_row(cache.next_position),
        state=placed_state(cache.state, on),
    )
    return rows.replace(past=past, text=rows.text.replace(cache=cache))


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="pool")
def fill(decoder: Decoder, pool: Rows, begun: Rows, source: jax.Array, place: jax.Array) -> Rows:
    """Puts begun texts into rows of a pool, in place.

    Layer by layer: where rows are split, the K new ones of a layer meet on every device. Prompts of
    fewer slots than the pool has are padded on the left.

    Args:
      decoder: of the agent.
      pool: B rows with room for texts.
      begun: texts.
      source: [K] rows of `begun`; see `filled_at_once`.
      place: [K] distinct rows of the pool; B puts a text nowhere.
    """

    def taken(new: jax.Array, like: jax.Array) -> jax.Array:
        """The K new rows, padded on the left up to the size of the pool's."""
        new = jnp.take(new, source, axis=0, mode="clip")
        if new.shape[1:] == like.shape[1:]:
            return new
        sizes = zip(like.shape[1:], new.shape[1:], strict=True)
        return jnp.pad(new, ((0, 0), *((size - own, 0) for size, own in sizes)))

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[place].set(taken(new, old), mode="drop")

    def by_layer(old: jax.Array, new: jax.Array) -> jax.Array:
        def layer(i: jax.Array, old: jax.Array) -> jax.Array:
            return old.at[i, place].set(taken(new[i], old[i]), mode="drop")

        return jax.lax.fori_loop(0, len(old), layer, old)

    def block(old: Block, new: Block) -> Block:
        return Block(
            keys=by_layer(old.keys, new.keys),
            values=by_layer(old.values, new.values),
            valid=put(old.valid, new.valid),
            positions=put(old.positions, new.positions),
        )

    def emptied(tail: Block) -> Block:
        """Keys and values, too: an attention weight of 0 does not remove NaN of the text before."""
        return Block(
            keys=tail.keys.at[:, place].set(0, mode="drop"),
            values=tail.values.at[:, place].set(0, mode="drop"),
            valid=tail.valid.at[place].set(False, mode="drop"),
            positions=tail.positions,
        )

    def rows(old: Any, new: Any) -> Any:
        return jax.tree.map(put, old, new)

    old, new = pool.text, begun.text
    text = rows(old.replace(cache=None, step=None), new.replace(cache=None, step=None)).replace(
        step=old.step,
        cache=old.cache.replace(
            tail=emptied(old.cache.tail),
            next_position=rows(old.cache.next_position, new.cache.next_position),
            state=jax.tree.map(by_layer, old.cache.state, new.cache.state),
        ),
    )
    filled = Rows(
        past=tuple(map(block, pool.past, begun.past)),
        text=text,
        keys=rows(pool.keys, begun.keys),
        rules=rows(pool.rules, begun.rules),
    )
    return _placed(filled, decoder.partition)


@functools.partial(
    jax.jit, static_argnames=("end_tokens", "max_tokens", "sampling"), donate_argnames="pool"
)
def run(
    agent: Agent,
    pool: Rows,
    ended: jax.Array,
    steps: jax.Array | np.int32 = ALL_STEPS,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
    sampling: SamplingConfig,
    stops: jax.Array | None = None,
) -> Rows:
    """Writes until this many rows [] have ended, or are free, for at most so many steps [].

    Settings as in `begin`.
    """
    agent = agent.during("writing").with_unembedding()
    ending = _ending(pool, end_tokens, max_tokens, stops)

    def running(text: DecodeState) -> jax.Array:
        return (jnp.sum(text.done) < ended) & (text.step - pool.text.step < steps)

    def step(text: DecodeState) -> DecodeState:
        last = jnp.maximum(text.lengths - 1, 0)
        embeds = agent.embed(jnp.take_along_axis(text.tokens, last[:, None], axis=1))
        # A row that has ended reads padding, which no position attends to.
        hidden, cache = agent.read(
            embeds, ~text.done[:, None], text.cache.replace(past=pool.past, used=last)
        )
        text = text.replace(cache=cache.replace(past=()))
        return _write(agent, hidden[:, 0], text, pool, sampling=sampling, ending=ending)

    text = jax.lax.while_loop(running, step, pool.text)
    return _placed(pool.replace(text=text), agent.partition)


@functools.partial(jax.jit, donate_argnames="pool")
def end_rows(pool: Rows, is_ended: jax.Array) -> Rows:
    """Ends the texts of some rows [B] bool, as they are."""
    return pool.replace(text=pool.text.replace(done=pool.text.done | is_ended))


def _ending(
    rows: Rows, end_tokens: tuple[int, ...], max_tokens: int, stops: jax.Array | None
) -> Ending:
    limits = jnp.full(len(rows.text.done), max_tokens, jnp.int32)
    if rows.rules is not None:
        limits = rows.rules.limits
    return Ending(jnp.asarray(end_tokens, jnp.int32), limits, stops)


def _write(
    agent: Agent, hidden: jax.Array, text: DecodeState, rows: Rows, **settings: Any
) -> DecodeState:
    """Adds the next token of every row to its text, at the row's own length."""
    width, rules = text.tokens.shape[1], rows.rules
    if rules is not None:  # rows that have ended draw nothing
        rules = rules.replace(temperature=jnp.where(text.done, 0, rules.temperature))
    place = jnp.where(text.done, width, text.lengths)  # rows that have ended: out of bounds
    after, token, logprob = advance(
        agent, hidden, text, text.lengths, keys=rows.keys, rules=rules, **settings
    )

    def added(found: jax.Array | None, new: jax.Array | None) -> jax.Array | None:
        if found is None or new is None:
            return None
        return found.at[jnp.arange(len(place)), place].set(new, mode="drop")

    return after.replace(
        tokens=added(text.tokens, token),
        logprobs=added(text.logprobs, logprob),
        step=text.step + 1,
    )
