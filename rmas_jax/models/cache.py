"""The cache of a decoder: blocks of keys and values, and the states of linear layers.

A cache is a tuple of complete, read-only blocks and one block to write:

    past[0]            past[1]               tail (capacity 4, used 2)
    . . q q q q q      . l z z z s s s       t t _ _            . padding, _ free

Complete blocks never change, so a `lax.scan` closes over them and carries only the rest
(`cache.replace(past=())`): a differentiated scan stores its carry once per step, and the tail is
small. A linear layer has no positions, only a state of fixed size, which every call replaces.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from rmas_jax.models.config import DecoderConfig


class Block(struct.PyTreeNode):
    """Keys and values of consecutive positions of a sequence.

    L counts the layers with attention, in a looped decoder once per loop.
    """

    keys: jax.Array  # [L, B, S, K, H], rotated
    values: jax.Array  # [L, B, S, K, H]
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
    used: jax.Array  # [] int32; number of written slots of the tail, including pads
    next_position: jax.Array  # [B] int32; position of the next real token
    state: LinearState | None = None  # None where no layer is linear


def empty_block(
    config: DecoderConfig, batch: int, capacity: int, *, dtype: DTypeLike = jnp.float32
) -> Block:
    """A block with `capacity` free slots."""
    shape = (config.num_kv_caches, batch, capacity, config.num_kv_heads, config.head_dim)
    return Block(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, capacity), bool),
        positions=jnp.zeros((batch, capacity), jnp.int32),
    )


def empty_state(
    config: DecoderConfig, batch: int, *, dtype: DTypeLike = jnp.float32
) -> LinearState | None:
    """The initial state of linear layers; None without linear layers."""
    c = config
    if not c.num_linear_states:
        return None
    heads = (c.linear_value_heads, c.linear_key_dim, c.linear_value_dim)
    return LinearState(
        conv=jnp.zeros((c.num_linear_states, batch, c.conv_width - 1, c.linear_conv_dim), dtype),
        memory=jnp.zeros((c.num_linear_states, batch, *heads), jnp.float32),
    )


def empty_cache(
    config: DecoderConfig, batch: int, capacity: int, *, dtype: DTypeLike = jnp.float32
) -> Cache:
    """An empty cache for `capacity` positions."""
    return Cache(
        past=(),
        tail=empty_block(config, batch, capacity, dtype=dtype),
        used=jnp.zeros((), jnp.int32),
        next_position=jnp.zeros((batch,), jnp.int32),
        state=empty_state(config, batch, dtype=dtype),
    )


def seal(cache: Cache, config: DecoderConfig, capacity: int) -> Cache:
    """Completes the tail and opens a new one with `capacity` free slots."""
    tail = empty_block(config, cache.tail.valid.shape[0], capacity, dtype=cache.tail.keys.dtype)
    return cache.replace(past=(*cache.past, cache.tail), tail=tail, used=jnp.zeros((), jnp.int32))


def repeat_rows(cache: Cache, batch: int) -> Cache:
    """What one row has read, for a batch of rows that all start with it."""

    def repeat(x: jax.Array, axis: int) -> jax.Array:
        return jnp.broadcast_to(x, (*x.shape[:axis], batch, *x.shape[axis + 1 :]))

    def of_block(block: Block) -> Block:
        return Block(
            keys=repeat(block.keys, 1),
            values=repeat(block.values, 1),
            valid=repeat(block.valid, 0),
            positions=repeat(block.positions, 0),
        )

    return Cache(
        past=tuple(of_block(block) for block in cache.past),
        tail=of_block(cache.tail),
        used=cache.used,
        next_position=repeat(cache.next_position, 0),
        state=jax.tree.map(lambda x: repeat(x, 1), cache.state),
    )
