"""The tokens whose input embeddings point in the direction of a latent vector."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.member import Member


@functools.partial(jax.jit, static_argnames="count")
def nearest_tokens(
    agent: Agent, vectors: jax.Array | np.ndarray, *, count: int
) -> tuple[jax.Array, jax.Array]:
    """The tokens nearest to vectors in an agent's input space, by cosine.

    A vector that crosses an edge lies in the receiver's input space, so its nearest tokens are from
    the receiver's vocabulary. They need not be its meaning: end-to-end training does not tie the
    vectors of a link to single tokens.

    Args:
      agent: the receiver.
      vectors: [..., D].
      count: k, number of tokens.

    Returns:
      Token ids [..., k] int32, nearest first, and their cosines [..., k] float32.
    """
    table = _unit(agent.embedding_table())
    cosine = jnp.matmul(_unit(vectors), table.T, precision="highest")
    # A token without a finite embedding ranks last; top_k would rank NaN first.
    cosine = jnp.where(jnp.isnan(cosine), -jnp.inf, cosine)
    nearness, ids = jax.lax.top_k(cosine, count)
    return ids.astype(jnp.int32), nearness


def _unit(vectors: jax.Array | np.ndarray) -> jax.Array:
    """Vectors [..., D] of norm one, float32; zero stays zero."""
    vectors = jnp.asarray(vectors, jnp.float32)
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)


def nearest_texts(
    member: Member, vectors: jax.Array | np.ndarray, *, count: int
) -> list[list[tuple[str, float]]]:
    """The texts of the k tokens nearest to each of M vectors, and their cosines: [M][k]."""
    found = nearest_tokens(member.agent, vectors, count=count)
    return [
        [(member.tokenizer.decode([token]), near) for token, near in zip(*row, strict=True)]
        for row in zip(*(x.tolist() for x in jax.device_get(found)), strict=True)
    ]
