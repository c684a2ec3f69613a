"""The divisor of norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def inverse_root(square: jax.Array, eps: float) -> jax.Array:
    """1 / sqrt(square + eps) in float32; NaN where the sum of squares overflows.

    Division by infinity would give 0, as in torch, and hide the overflow.
    """
    return jnp.where(square < jnp.inf, jax.lax.rsqrt(square + eps), jnp.nan)
