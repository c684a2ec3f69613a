"""The inner loop: an agent's inner link learns to map thoughts to next inputs.

The frozen agent reads each role text once; the link then regresses the embedding of the next token
on the cached states (paper eq. 5), many steps in one compiled loop. The same regression, towards
the next agent's embedding of that token, aligns an outer link.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rmas_jax.config import InnerConfig
from rmas_jax.links import LinkConfig, apply_link


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


class UpstreamLink(struct.PyTreeNode):
    """A trained link applied to vectors before the link in training."""

    link: LinkConfig = struct.field(pytree_node=False)
    params: Any


class LinkState(struct.PyTreeNode):
    """A link in training."""

    step: jax.Array  # () int32; steps taken
    params: Any
    optimizer_state: Any


def inner_optimizer(config: InnerConfig) -> optax.GradientTransformation:
    """AdamW without decay, after a clip of the gradient; warmup, then a cosine to zero."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(
                0.0, config.learning_rate, config.warmup_steps, config.steps
            ),
            b2=0.95,
            weight_decay=0.0,
        ),
    )


def start_link(params: Any, config: InnerConfig) -> LinkState:
    """The state before the first step."""
    return LinkState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=inner_optimizer(config).init(params),
    )


def regress_block(
    link: LinkConfig,
    config: InnerConfig,
    state: LinkState,
    hidden: jax.Array,
    target: jax.Array,
    *,
    key: jax.Array,
    noise: jax.Array | float = 0.0,
    upstream: UpstreamLink | None = None,
) -> tuple[LinkState, dict[str, jax.Array]]:
    """Takes up to K steps of a link's training, within `config.steps`.

    Args:
      link: an inner or an outer link.
      config: of the regression.
      state: the link in training.
      hidden: [K, B, D] vectors for each step, one per predicted token.
      target: [K, B, D'] embeddings of those tokens.
      key: of the noise.
      noise: standard deviation of the Gaussian noise on the link's input, if `config.noise` is
        not 0.
      upstream: a link to apply to `hidden` first, if any.

    Returns:
      The state after these steps, and curves {"loss", "grad_norm"} [K]; entries past the last step
      are undefined.
    """
    optimizer = inner_optimizer(config)

    def step(k: jax.Array, carry: tuple[LinkState, Any]) -> tuple[LinkState, Any]:
        state, curves = carry
        read = hidden[k]
        if upstream is not None:
            read = apply_link(upstream.link, upstream.params, read)
        if config.noise:
            drawn = jax.random.normal(jax.random.fold_in(key, state.step), read.shape)
            read += noise * drawn
        loss, grads = jax.value_and_grad(
            lambda params: regression_loss(
                link,
                params,
                read,
                target[k],
                cosine_weight=config.cosine_weight,
                mse_weight=config.mse_weight,
            )
        )(state.params)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        state = LinkState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            optimizer_state=optimizer_state,
        )
        values = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return state, {name: curve.at[k].set(values[name]) for name, curve in curves.items()}

    empty = {name: jnp.zeros(len(hidden), jnp.float32) for name in ("loss", "grad_norm")}
    # No scan: the last block may hold fewer steps and must run the same program.
    count = jnp.minimum(len(hidden), config.steps - state.step)
    return jax.lax.fori_loop(0, count, step, (state, empty))
