"""Parts of a step that all trainings share: state, optimiser, accumulated gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rmas_jax.config import TrainingConfig
from rmas_jax.config.optimizers import build_optimizer
from rmas_jax.training.data.encoding import TrainingData


class TrainState(struct.PyTreeNode):
    """State that a step changes and a checkpoint holds."""

    step: jax.Array  # [] int32; steps taken in this phase
    params: Any  # `Links`, all of them, or an adapter
    optimizer: Any  # optax state of the trained parameters


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Optimiser of a phase: clipping by global norm, then the named optax rule and schedule."""
    peak, warmup, steps = config.learning_rate, config.warmup_steps, config.steps
    after_warmup = {
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])
    rule = build_optimizer(config.optimizer, rate)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)


def start_state(config: TrainingConfig, params: Any, trained: Any) -> TrainState:
    """State before the first step; `trained` are the parameters that the optimiser changes."""
    optimizer = make_optimizer(config).init(trained)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, optimizer=optimizer)


def mean_over_parts(
    value_and_grad: Callable[[Any, TrainingData], Any],
    trained: Any,
    batch: TrainingData,
    parts: int,
) -> Any:
    """`value_and_grad` of a batch as the mean over its parts, one at a time in memory."""
    if parts == 1:
        return value_and_grad(trained, batch)

    def split(
        x: jax.Array,
    ) -> jax.Array:  # every parts-th row: each device keeps the rows that it has
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(value_and_grad, trained, first))

    def add(total: Any, batch: TrainingData) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, value_and_grad(trained, batch)), None

    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda x: x / parts, total)
