"""Checksums of train states."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.sharding import to_host


def state_digest(state: Any) -> list[list[int]]:
    """Two 32-bit checksums per array: any flipped bit changes at least one of them.

    Independent of the arrays' sharding, and computed on their devices.
    """
    return to_host(_leaf_sums(state)).tolist()


@jax.jit
def _leaf_sums(state: Any) -> jax.Array:
    """Sums [leaves, 2] of all words, weighted by odd numbers that depend on place, modulo 2^32."""
    return jnp.stack([_sums(leaf) for leaf in jax.tree.leaves(state)])


def _sums(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = 8 * min(leaf.dtype.itemsize, 4)  # words of 8 bytes get an axis of two
    words = jax.lax.bitcast_convert_type(leaf, f"uint{bits}").astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )
    weights = (2 * place + 1, (place * np.uint32(0x9E3779B1)) | np.uint32(1))
    return jnp.stack([(words * weight).sum(dtype=jnp.uint32) for weight in weights])
