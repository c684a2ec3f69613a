"""Attention of new positions over the blocks of a cache, and rotary angles."""

from __future__ import annotations

import functools
from typing import cast

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, to avoid NaN in a row without visible keys


def rotary(
    x: jax.Array, positions: jax.Array, frequencies: jax.Array, factor: jax.Array | float = 1.0
) -> jax.Array:
    """Rotates pairs (i, i + R/2) of each head by position times frequency, in float32.

    Args:
      x: [B, T, heads, H]; dimensions from R on stay unchanged.
      positions: [B, T] int32.
      frequencies: [R/2], see `rope.rotary_frequencies`.
      factor: on sine and cosine.
    """
    half = frequencies.shape[0]
    angle = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    sin, cos = jnp.sin(angle) * factor, jnp.cos(angle) * factor
    x32 = x.astype(jnp.float32)
    first, second, rest = jnp.split(x32, (half, 2 * half), axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest], axis=-1).astype(x.dtype)


def attend(
    query: jax.Array,
    keys: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
    visible: tuple[jax.Array, ...],
) -> jax.Array:
    """Softmax attention over the union of several blocks, without joining them.

    Args:
      query: [B, T, N, H], already scaled.
      keys: per block [B, K, S, H]; query head n reads key head n // (N / K).
      values: per block [B, K, S, H].
      visible: per block [B, T, S] bool.

    Returns:
      [B, T, N, H]; logits and softmax are float32.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads = keys[0].shape[1]
    group = heads // kv_heads
    # With heads first, in the cache as well, and a group's query heads next to time, there are two
    # plain batched products: other orders copy each block before its product.
    grouped = query.reshape(batch, time, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, group * time, head_dim)  # [B, K, G * T, H]
    logits, used = [], []
    for key, value, see in zip(keys, values, visible, strict=True):
        if not key.shape[2]:  # of an empty prefix
            continue
        used.append(value)
        block = jnp.einsum("bkqh,bksh->bkqs", grouped, key, preferred_element_type=jnp.float32)
        block = block.reshape(batch, kv_heads, group, time, key.shape[2])
        block = jnp.where(see[:, None, None], block, MASKED)
        logits.append(block.reshape(batch, kv_heads, group * time, key.shape[2]))
    # The softmax block by block: joined logits would be written and read once more.
    peaks = [jax.lax.stop_gradient(block.max(-1, keepdims=True)) for block in logits]
    peak = functools.reduce(jnp.maximum, peaks)
    weights = [jnp.exp(block - peak) for block in logits]
    total = sum(block.sum(-1, keepdims=True) for block in weights)
    parts = (
        jnp.einsum(
            "bkqs,bksh->bkqh",
            block.astype(value.dtype),
            value,
            preferred_element_type=jnp.float32,
        )
        for block, value in zip(weights, used, strict=True)
    )
    mixed = (cast(jax.Array, sum(parts)) / total).astype(query.dtype)
    mixed = mixed.reshape(batch, kv_heads, group, time, head_dim)
    mixed = mixed.transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, time, heads, head_dim)
