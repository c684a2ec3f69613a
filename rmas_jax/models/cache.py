"""What a decoder remembers: blocks of keys and values, each with its own mask.

A cache is a tuple of finished blocks, which are only read, and one block that is being written:

    past[0]            past[1]               tail (capacity 4, used 2)
    . . q q q q q      . l z z z s s s       t t _ _            . padding, _ free

Finished blocks never change, so a `lax.scan` closes over them and carries the tail alone: a
differentiated scan stores its carry once per step, and the tail is small.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.models.config import DecoderConfig


@struct.dataclass
class Block:
    """Keys and values of consecutive positions of a sequence."""

    keys: jax.Array  # [L, B, S, K, H], rotated
    values: jax.Array  # [L, B, S, K, H]
    valid: jax.Array  # [B, S] bool; False on padding and on slots not yet written
    positions: jax.Array  # [B, S] int32; place in the sequence, pads not counted


@struct.dataclass
class Cache:
    """Everything read so far: finished blocks and the block being written."""

    past: tuple[Block, ...]  # read only
    tail: Block  # fixed capacity S, written from slot 0 on
    used: jax.Array  # [] int32; slots of the tail that are written (pads included)
    next_position: jax.Array  # [B] int32; position of the next real token


def empty_block(config: DecoderConfig, batch: int, capacity: int, *, dtype=jnp.float32) -> Block:
    """A block with `capacity` free slots."""
    shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
    return Block(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, capacity), bool),
        positions=jnp.zeros((batch, capacity), jnp.int32),
    )


def empty_cache(config: DecoderConfig, batch: int, capacity: int, *, dtype=jnp.float32) -> Cache:
    """A cache that has read nothing and can hold `capacity` positions."""
    return Cache(
        past=(),
        tail=empty_block(config, batch, capacity, dtype=dtype),
        used=jnp.zeros((), jnp.int32),
        next_position=jnp.zeros((batch,), jnp.int32),
    )


def seal(cache: Cache, config: DecoderConfig, capacity: int) -> Cache:
    """Finishes the tail and opens a new one with `capacity` free slots."""
    tail = empty_block(config, cache.tail.valid.shape[0], capacity, dtype=cache.tail.keys.dtype)
    return cache.replace(past=(*cache.past, cache.tail), tail=tail, used=jnp.zeros((), jnp.int32))
