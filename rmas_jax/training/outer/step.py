"""The outer loop: all links learn from the answer, through every round and frozen agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rmas_jax.config import PhaseConfig
from rmas_jax.config.optimizers import build_optimizer
from rmas_jax.rounds.channels import latent_channel
from rmas_jax.rounds.recursion import crossing_probes, run_rounds
from rmas_jax.topology import System
from rmas_jax.training.data.batches import TrainingData


@struct.dataclass
class OuterState:
    """What a step changes, and what a checkpoint holds."""

    step: jax.Array  # [] int32; steps taken in this phase
    links: Any  # {"inner": {role: params}, "outer": {edge: params}}, float32
    optimizer: Any  # optax state of the trained links


def make_optimizer(phase: PhaseConfig) -> optax.GradientTransformation:
    """Optimiser of a phase: clipping by global norm, then the named optax rule and schedule."""
    peak, warmup, steps = phase.learning_rate, phase.warmup_steps, phase.steps - phase.warmup_steps
    after_warmup = {
        "cosine": optax.cosine_decay_schedule(peak, steps),
        "linear": optax.linear_schedule(peak, 0.0, steps),
        "constant": optax.constant_schedule(peak),
    }[phase.schedule]
    rate = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after_warmup], [warmup])
    rule = build_optimizer(phase.optimizer, rate)
    return optax.chain(optax.clip_by_global_norm(phase.max_grad_norm), rule)


def trainable_links(phase: PhaseConfig, links: Any) -> Any:
    """The part of the links that a phase trains: outer links, and inner ones if it says so."""
    return links if phase.train_inner_links else {"outer": links["outer"]}


def start_phase(phase: PhaseConfig, links: Any) -> OuterState:
    """State before the first step of a phase."""
    optimizer = make_optimizer(phase).init(trainable_links(phase, links))
    return OuterState(step=jnp.zeros((), jnp.int32), links=links, optimizer=optimizer)


def outer_loss(
    system: System,
    agents: Any,
    links: Any,
    batch: TrainingData,
    *,
    rounds: int,
    teacher_forced: bool,
    feedback: str = "draft",
    round_weights: tuple[float, ...] = (),
    role_text_weight: float = 0.0,
    probes: Mapping[str, jax.Array] | None = None,
    remat: bool = False,
    truncate_rounds: int | None = None,
    truncate_steps: int | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Cross-entropy of the answer, through all rounds (paper eq. 6).

    Args:
      system: the system.
      agents: frozen parameters by role.
      links: parameters of all links.
      batch: prompts and role texts.
      rounds: R.
      teacher_forced: thoughts from role texts (upstream) instead of the system's own rollout.
      feedback: of a teacher-forced answerer: the states over its own text of the round ("draft"),
        over its last text, which is then its target in every round ("gold": upstream's, a leak), or
        a rollout, which has seen no text ("rollout").
      round_weights: weight of the answerer's text in each round; () is the last round alone.
      role_text_weight: weight of the mean loss of every role's text in every round.
      probes: see `run_rounds`.
      remat: recompute rounds in the backward pass.
      truncate_rounds: rounds that a gradient passes through; None is all.
      truncate_steps: thoughts of a rollout that it passes through; None is all.

    Returns:
      The loss, and {"loss": {role: [R]}, "exact_match": {role: [R]}}, batch means of the texts that
      the loss reads; NaN in rounds in which it does not read them; and "faults" [R, N], the share
      of items in which a stage was not finite (`Rounds.finite`).
    """
    targets, answerer = batch.targets, system.topology.answerer
    if teacher_forced and feedback == "gold":
        final = jax.tree.map(lambda x: jnp.broadcast_to(x[:, -1:], x.shape), targets[answerer])
        targets = {**targets, answerer: final}
    weights = round_weights or (0.0,) * (rounds - 1) + (1.0,)
    scored = {answerer: tuple(weight > 0 for weight in weights)}
    if role_text_weight:
        scored = dict.fromkeys(targets, (True,) * rounds)
    out = run_rounds(
        system,
        agents,
        latent_channel(system, links),
        batch.prompts,
        rounds=rounds,
        targets=targets if teacher_forced else {role: targets[role] for role in scored},
        scored=scored,
        teacher_forced=teacher_forced,
        rollout_feedback=feedback == "rollout",
        probes=probes,
        remat=remat,
        truncate_rounds=truncate_rounds,
        truncate_steps=truncate_steps,
    )
    by_role = {role: loss.mean(axis=1) for role, loss in out.losses.items()}  # [R]
    loss = (by_role[answerer] * jnp.asarray(weights)).sum() / sum(weights)
    if role_text_weight:
        loss += role_text_weight * sum(x.mean() for x in by_role.values()) / len(by_role)
    exact_match = {role: x.mean(axis=1) for role, x in out.exact_match.items()}
    known = {role: jnp.asarray(scored[role]) for role in by_role}
    details = {"loss": by_role, "exact_match": exact_match}
    details = {
        name: {role: jnp.where(known[role], x, jnp.nan) for role, x in values.items()}
        for name, values in details.items()
    }
    return loss, details | {"faults": jnp.mean(~out.finite, axis=1)}


def outer_step(
    system: System, phase: PhaseConfig, agents: Any, batch: TrainingData, state: OuterState
) -> tuple[OuterState, dict[str, Any]]:
    """One optimiser step on a batch.

    Args:
      system: the system (static).
      phase: the phase (static).
      agents: frozen parameters by role.
      batch: `phase.batch_size` items.
      state: links and optimiser state; donate it.

    Returns:
      The new state, and metrics, float32: "loss" and "grad_norm" (before clipping); by link,
      "link_grad_norm"; by edge, "edge_grad_norm" [R], the norm of the gradient at the vectors that
      cross the edge in each round; by role, "text_loss" and "text_exact_match" [R]; and "faults"
      [R, N]. See `outer_loss`.
    """

    def loss_of(trained, probes, batch):
        return outer_loss(
            system,
            agents,
            state.links | trained,
            batch,
            rounds=phase.rounds,
            teacher_forced=phase.latents == "teacher_forced",
            feedback=phase.feedback,
            round_weights=phase.round_weights,
            role_text_weight=phase.role_text_weight,
            probes=probes,
            remat=phase.remat,
            truncate_rounds=phase.truncate_rounds,
            truncate_steps=phase.truncate_steps,
        )

    def value_and_grad(trained, batch):
        """Loss and metrics, with the squared norm of what reaches each edge in each round."""
        probes = crossing_probes(system, rounds=phase.rounds, batch=len(batch))
        (loss, details), (grads, reaching) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(trained, probes, batch)
        squares = {name: jnp.square(x).sum((1, 2, 3)) for name, x in reaching.items()}
        return (loss, details | {"squares": squares}), grads

    trained = trainable_links(phase, state.links)
    (loss, details), grads = _mean_over_parts(value_and_grad, trained, batch, phase.accumulation)
    updates, optimizer = make_optimizer(phase).update(grads, state.optimizer, trained)
    links = state.links | optax.apply_updates(trained, updates)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "link_grad_norm": {
            name: optax.tree.norm(g) for part in grads.values() for name, g in part.items()
        },
        # Each item's loss has a part in the mean over items, in a part of the batch or in all.
        "edge_grad_norm": {
            name: jnp.sqrt(x / phase.accumulation) for name, x in details["squares"].items()
        },
        "text_loss": details["loss"],
        "text_exact_match": details["exact_match"],
        "faults": details["faults"],
    }
    return dataclasses.replace(
        state, step=state.step + 1, links=links, optimizer=optimizer
    ), metrics


def _mean_over_parts(value_and_grad: Any, trained: Any, batch: TrainingData, parts: int) -> Any:
    """`value_and_grad` of a batch as the mean over its parts, one at a time in memory."""
    if parts == 1:
        return value_and_grad(trained, batch)

    def split(x):  # every parts-th row: each device keeps the rows that it has
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], batches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(value_and_grad, trained, first))

    def add(total, batch):
        return jax.tree.map(jnp.add, total, value_and_grad(trained, batch)), None

    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda x: x / parts, total)
