"""The inner loop: an agent's inner link learns to turn its thoughts into its next inputs.

The frozen agent reads each role text once; the link then regresses the embedding of the next token
on the cached states (paper eq. 5), in one compiled scan. The same regression, towards the next
agent's embedding of that token, aligns an outer link.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmas_jax.config import InnerConfig
from rmas_jax.links import LinkConfig, apply_link
from rmas_jax.models import Decoder


def regression_loss(
    link: LinkConfig,
    params: Any,
    hidden: jax.Array,
    target: jax.Array,
    *,
    cosine_weight: float,
    mse_weight: float,
) -> jax.Array:
    """Mean of 1 - cos and of the squared error (upstream's two terms), float32.

    Args:
      link: the link.
      params: its parameters.
      hidden: [n, D] vectors of positions p.
      target: [n, D'] input embeddings of the tokens at p + 1.
      cosine_weight: weight of 1 - cos.
      mse_weight: weight of the squared error per coordinate.
    """
    out = apply_link(link, params, hidden).astype(jnp.float32)
    target = target.astype(jnp.float32)
    cosine = optax.cosine_similarity(out, target, epsilon=1e-8)
    squared = jnp.mean((out - target) ** 2, axis=-1)
    return jnp.mean(cosine_weight * (1 - cosine) + mse_weight * squared)


def regress_link(
    link: LinkConfig,
    params: Any,
    hidden: jax.Array,
    target: jax.Array,
    config: InnerConfig,
    *,
    key: jax.Array,
    count: jax.Array | int | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Trains one link on cached pairs.

    Args:
      link: an inner or an outer link.
      params: its parameters at the start.
      hidden: [n, D] what it reads, one vector per predicted token.
      target: [n, D'] embeddings of those tokens.
      config: steps, batch size (tokens per step), learning rate and weights.
      key: order of the batches.
      count: pairs that are read, from the first on; None is all. What stands behind them may be
        padding, so that sets of different sizes share one compiled program.

    Returns:
      The trained parameters, and curves {"loss", "grad_norm"} [steps].
    """
    if config.steps == 0:
        return params, {"loss": jnp.zeros(0), "grad_norm": jnp.zeros(0)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(
                0.0, config.learning_rate, config.warmup_steps, config.steps
            ),
            b2=0.95,
            weight_decay=0.0,
        ),
    )

    # Random numbers are drawn once for all steps, and with replacement: on CPU, drawing them in a
    # step takes as long as the rest of it, and a permutation, a sort, longer.
    count = len(hidden) if count is None else count
    rows = jax.random.randint(key, (config.steps, config.batch_size), 0, count)
    is_read = (jnp.arange(len(hidden)) < count)[:, None]
    rms = jnp.sqrt(jnp.mean(hidden**2, where=is_read))

    def step(carry, scanned):
        params, state = carry
        i, rows = scanned
        read = hidden[rows]
        if config.noise:
            read += config.noise * rms * jax.random.normal(jax.random.fold_in(key, i), read.shape)
        loss, grads = jax.value_and_grad(
            lambda p: regression_loss(
                link,
                p,
                read,
                target[rows],
                cosine_weight=config.cosine_weight,
                mse_weight=config.mse_weight,
            )
        )(params)
        updates, state = optimizer.update(grads, state, params)
        curve = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return (optax.apply_updates(params, updates), state), curve

    (params, _), curves = jax.lax.scan(
        step, (params, optimizer.init(params)), (jnp.arange(config.steps), rows)
    )
    return params, curves


def next_token_pairs(
    model: Decoder, params: Any, ids: jax.Array, valid: jax.Array, *, width: int
) -> tuple[jax.Array, jax.Array]:
    """Each of the last `width` tokens as what it should be predicted from, and become.

    Args:
      model: the agent's decoder.
      params: its frozen parameters.
      ids: [B, T] prompt and role text, padded on the left.
      valid: [B, T] bool.
      width: length of the longest role text, end token included.

    Returns:
      States [B, width, D] at positions p, and input embeddings [B, width, D] of tokens p + 1
      (scaled, where the family scales them).
    """
    embeds = model.apply({"params": params}, ids, method="embed")
    hidden = model.apply({"params": params}, embeds, valid)
    return hidden[:, -width - 1 : -1], embeds[:, -width:]
