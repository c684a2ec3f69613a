"""Attention of new positions over the blocks of a cache, and rotary angles."""

from __future__ import annotations

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
      keys: per block [B, S, K, H]; query head n reads key head n // (N / K).
      values: per block [B, S, K, H].
      visible: per block [B, T, S] bool.

    Returns:
      [B, T, N, H]; logits and softmax are float32.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads = keys[0].shape[2]
    group = heads // kv_heads
    # With heads first and a group's query heads next to time, there are two plain batched products:
    # three times as fast on CPU as a contraction in the order of the arguments.
    grouped = query.reshape(batch, time, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, group * time, head_dim)  # [B, K, G * T, H]
    logits = []
    for key, see in zip(keys, visible, strict=True):
        block = jnp.einsum("bkqh,bskh->bkqs", grouped, key, preferred_element_type=jnp.float32)
        block = block.reshape(batch, kv_heads, group, time, key.shape[1])
        logits.append(jnp.where(see[:, None, None], block, MASKED))
    weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1).astype(query.dtype)
    weights = weights.reshape(batch, kv_heads, group * time, -1)
    bounds = [0]
    for key in keys:
        bounds.append(bounds[-1] + key.shape[1])
    parts = (
        jnp.einsum("bkqs,bskh->bkqh", weights[..., low:high], value)
        for low, high, value in zip(bounds, bounds[1:], values, strict=False)
    )
    mixed = cast(jax.Array, sum(parts)).reshape(batch, kv_heads, group, time, head_dim)
    mixed = mixed.transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, time, heads, head_dim)
