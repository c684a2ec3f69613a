"""What norms divide by."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def inverse_root(square: jax.Array, eps: float) -> jax.Array:
    """1 / sqrt(square + eps) in float32; NaN where squares have added up to infinity.

    A vector divided by infinity would be 0, and nobody would notice (torch gives that 0).
    """
    return jnp.where(square < jnp.inf, jax.lax.rsqrt(square + eps), jnp.nan)
