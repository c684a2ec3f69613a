"""The cache of a decoder: blocks of keys and values, and the states of linear layers.

A cache is a tuple of complete, read-only blocks and one block to write:

    past[0]            past[1]               tail (capacity 4, used 2)
    . . q q q q q      . l z z z s s s       t t _ _            . padding, _ free

Complete blocks never change, so a `lax.scan` closes over them and carries only the rest
(`cache.replace(past=())`): a differentiated scan stores its carry once per step, and the tail is
small. Layers only read the tail, as it was before a call, and return the keys and values of the
call's positions; one update after all layers writes these, so that a loop that carries the tail
writes them in place. A linear layer has no positions, only a state of fixed size, which every call
replaces.

A loop of single steps through unrolled layers has keys and values by layer (`by_layer`): a slice
of a stack would be a copy in every step.

On a mesh rows lie where their batch does, and heads over `model`, see `cached_heads`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from rmas_jax.models.config import DecoderConfig
from rmas_jax.partition import ONE_DEVICE, Partition


class ByLayer(struct.PyTreeNode):
    """A stack of arrays, each for itself."""

    arrays: tuple[jax.Array, ...]

    def __getitem__(self, layer: int) -> jax.Array:
        """The array of a layer."""
        return self.arrays[layer]


class Block(struct.PyTreeNode):
    """Keys and values of consecutive positions of a sequence.

    L counts the layers with attention, in a looped decoder once per loop. In loops over steps of
    unrolled layers, `ByLayer` takes the place of both arrays.
    """

    keys: jax.Array  # [L, B, K, S, H], rotated; heads first, as products read them
    values: jax.Array  # [L, B, K, S, H]
    valid: jax.Array  # [B, S] bool; False on padding and on slots not yet written
    positions: jax.Array  # [B, S] int32; index in the sequence without pads


class LinearState(struct.PyTreeNode):
    """State of the L linear layers after everything read so far."""

    conv: jax.Array  # [L, B, W - 1, C]; last inputs of the convolution over W positions
    memory: jax.Array  # [L, B, N, key dim, value dim] float32; written by the delta rule


class Cache(struct.PyTreeNode):
    """Everything read so far: complete blocks, the block being written, the linear states."""

    past: tuple[Block, ...]  # read only
    tail: Block  # fixed capacity S, written from slot 0 on
    used: jax.Array  # [] int32, or [B] of each row; written slots of the tail, including pads
    next_position: jax.Array  # [B] int32; position of the next real token
    state: LinearState | None = None  # None where no layer is linear


def cached_heads(config: DecoderConfig, partition: Partition = ONE_DEVICE) -> int:
    """Heads of keys and values in a cache.

    Where `model` splits the query heads but not these, each is repeated until it does, so that a
    device holds the heads that its queries read and no more. Where it splits neither, attention and
    its cache are whole on every device of `model`.
    """
    return math.lcm(config.num_kv_heads, partition.parts("heads", config.num_heads))


def placed_block(block: Block, partition: Partition) -> Block:
    """A block with its rows and heads where those of the batch lie."""

    def by_heads(x: jax.Array) -> jax.Array:
        return partition.constrain(x, None, "batch", "heads", None, None)

    return Block(
        keys=by_heads(block.keys),
        values=by_heads(block.values),
        valid=partition.constrain(block.valid, "batch", None),
        positions=partition.constrain(block.positions, "batch", None),
    )


def placed_state(state: LinearState | None, partition: Partition) -> LinearState | None:
    """The same for the states of linear layers."""
    return state and LinearState(
        conv=partition.constrain(state.conv, None, "batch", None, None),
        memory=partition.constrain(state.memory, None, "batch", "heads", None, None),
    )


def empty_block(
    config: DecoderConfig,
    batch: int,
    capacity: int,
    *,
    dtype: DTypeLike = jnp.float32,
    partition: Partition = ONE_DEVICE,
) -> Block:
    """A block with `capacity` free slots."""
    heads = cached_heads(config, partition)
    shape = (config.num_kv_caches, batch, heads, capacity, config.head_dim)
    empty = Block(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, capacity), bool),
        positions=jnp.zeros((batch, capacity), jnp.int32),
    )
    return placed_block(empty, partition)


def empty_state(
    config: DecoderConfig,
    batch: int,
    *,
    dtype: DTypeLike = jnp.float32,
    partition: Partition = ONE_DEVICE,
) -> LinearState | None:
    """The initial state of linear layers; None without linear layers."""
    c = config
    if not c.num_linear_states:
        return None
    heads = (c.linear_value_heads, c.linear_key_dim, c.linear_value_dim)
    empty = LinearState(
        conv=jnp.zeros((c.num_linear_states, batch, c.conv_width - 1, c.linear_conv_dim), dtype),
        memory=jnp.zeros((c.num_linear_states, batch, *heads), jnp.float32),
    )
    return placed_state(empty, partition)


def empty_cache(
    config: DecoderConfig,
    batch: int,
    capacity: int,
    *,
    dtype: DTypeLike = jnp.float32,
    partition: Partition = ONE_DEVICE,
) -> Cache:
    """An empty cache for `capacity` positions."""
    return Cache(
        past=(),
        tail=empty_block(config, batch, capacity, dtype=dtype, partition=partition),
        used=jnp.zeros((), jnp.int32),
        next_position=partition.constrain(jnp.zeros((batch,), jnp.int32), "batch"),
        state=empty_state(config, batch, dtype=dtype, partition=partition),
    )


def seal(
    cache: Cache, config: DecoderConfig, capacity: int, *, partition: Partition = ONE_DEVICE
) -> Cache:
    """Completes the tail and opens a new one with `capacity` free slots."""
    old = cache.tail
    tail = empty_block(
        config, old.valid.shape[0], capacity, dtype=old.keys.dtype, partition=partition
    )
    return cache.replace(past=(*cache.past, old), tail=tail, used=jnp.zeros((), jnp.int32))


def by_layer(cache: Cache) -> Cache:
    """The same, where each layer has keys and values of its own."""

    def apart(stack: jax.Array) -> Any:
        return ByLayer(tuple(stack))

    def of_block(block: Block) -> Block:
        return block.replace(keys=apart(block.keys), values=apart(block.values))

    return cache.replace(past=tuple(map(of_block, cache.past)), tail=of_block(cache.tail))


def stacked(block: Block) -> Block:
    """The same, where the layers are an axis."""

    def joined(found: Any) -> jax.Array:
        return jnp.stack(found.arrays) if isinstance(found, ByLayer) else found

    return block.replace(keys=joined(block.keys), values=joined(block.values))


def read_blocks(cache: Cache, time: int) -> tuple[Block, ...]:
    """The blocks that a call of `time` positions reads: all that may have content.

    A tail with room for this call and no more is empty.
    """
    return cache.past if cache.tail.valid.shape[1] == time else (*cache.past, cache.tail)


def append(cache: Cache, new: Block, *, partition: Partition = ONE_DEVICE) -> Cache:
    """Writes the positions of a call into the next free slots, of all rows or of each row.

    used 2            tail  t t _ _ _   new  n n   ->   tail  t t n n _
    used [2, 1]       tail  t t _ _ _   new  n     ->   tail  t t n _ _
                            t _ _ _ _        n                t n _ _ _
    """
    tail, new = cache.tail, placed_block(new, partition)

    def write(old: Any, new: jax.Array, axis: int) -> Any:
        if isinstance(old, ByLayer):
            layers = zip(old.arrays, new, strict=True)
            return ByLayer(tuple(write(*of_layer, axis - 1) for of_layer in layers))
        new = new.astype(old.dtype)
        if old.shape == new.shape:
            return new
        if cache.used.ndim:
            return _write_by_row(old, new, cache.used, axis)
        return jax.lax.dynamic_update_slice_in_dim(old, new, cache.used, axis)

    written = Block(
        keys=write(tail.keys, new.keys, 3),
        values=write(tail.values, new.values, 3),
        valid=write(tail.valid, new.valid, 1),
        positions=write(tail.positions, new.positions, 1),
    )
    return cache.replace(
        tail=placed_block(written, partition), used=cache.used + new.valid.shape[1]
    )


def _write_by_row(old: jax.Array, new: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """Writes each row at its slot [B] of an axis: two behind its row's, or the next one [B, S].

    Rows are batching dimensions of one scatter, which needs no transposed copy of the cache, and
    splits over a mesh as the cache does.
    """
    rows = max(axis - 2, 0)
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(i for i in range(old.ndim) if i != rows),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=(rows,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(
        old,
        slots[:, None],
        new,
        dimensions,
        indices_are_sorted=True,
        unique_indices=True,
        mode=jax.lax.GatherScatterMode.CLIP,
    )


def known_after(slot: jax.Array, result: jax.Array) -> jax.Array:
    """The same slot [] or [B] int32, for a write that must follow all reads behind `result`.

    XLA copies an array that may be written before it is read. Layers in a loop have read the tail
    when the loop ends; of unrolled ones, nothing that is written depends on the last one's reads.
    """
    bits = jax.lax.bitcast_convert_type(result.ravel()[0].astype(jnp.float32), jnp.int32)
    return slot + jax.lax.population_count(bits) // 64  # at most 32 bits: 0, unknown to XLA


def repeat_rows(cache: Cache, times: int, *, partition: Partition = ONE_DEVICE) -> Cache:
    """What each row has read, for several rows that all start with it; these stand together."""

    def repeat(x: jax.Array, axis: int) -> jax.Array:
        return jnp.repeat(x, times, axis, total_repeat_length=times * x.shape[axis])

    def of_block(block: Block) -> Block:
        repeated = Block(
            keys=repeat(block.keys, 1),
            values=repeat(block.values, 1),
            valid=repeat(block.valid, 0),
            positions=repeat(block.positions, 0),
        )
        return placed_block(repeated, partition)

    state = jax.tree.map(lambda x: repeat(x, 1), cache.state)
    return Cache(
        past=tuple(of_block(block) for block in cache.past),
        tail=of_block(cache.tail),
        used=cache.used,
        next_position=partition.constrain(repeat(cache.next_position, 0), "batch"),
        state=placed_state(state, partition),
    )
