"""What a latent vector is like: the tokens whose input embeddings point the same way."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rmas_jax.agents.agent import Agent


@functools.partial(jax.jit, static_argnames="count")
def nearest_tokens(agent: Agent, vectors: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """The tokens nearest to vectors in an agent's input space, by cosine.

    A vector that crosses an edge lives in the receiver's input space, so it is the receiver's
    vocabulary in which it can be read. The nearest token need not be what the vector says: links
    are trained to be useful, and nothing makes their vectors stand for single tokens.

    Args:
      agent: the receiver.
      vectors: [..., D].
      count: k, how many tokens.

    Returns:
      Token ids [..., k] int32, nearest first, and their cosines [..., k] float32.
    """
    cosine = _unit(vectors) @ _unit(agent.embedding_table()).T
    # A token without a finite embedding is near to nothing; NaN would come before all others.
    cosine = jnp.where(jnp.isnan(cosine), -jnp.inf, cosine)
    nearness, ids = jax.lax.top_k(cosine, count)
    return ids.astype(jnp.int32), nearness


def _unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of norm one, float32; zero stays zero."""
    vectors = jnp.asarray(vectors, jnp.float32)
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
