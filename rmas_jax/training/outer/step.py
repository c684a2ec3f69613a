"""The outer loop: all links learn from the answer, through every round and frozen agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from rmas_jax.agents.agent import Agent
from rmas_jax.config import PhaseConfig
from rmas_jax.links import Links
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, crossing_probes, run_rounds
from rmas_jax.rounds.supervision import Supervision, Targets
from rmas_jax.topology import System
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.phases.step import (
    TrainState,
    make_optimizer,
    mean_over_parts,
    start_state,
)


def trainable_links(phase: PhaseConfig, links: Links) -> Links:
    """The links that a phase trains: outer ones, and inner ones with `train_inner_links`."""
    return links if phase.train_inner_links else links.replace(inner={})


def with_trained(links: Links, trained: Links) -> Links:
    """All links, with the trained ones replaced."""
    return Links(links.inner | trained.inner, links.outer | trained.outer)


def phase_unroll(phase: PhaseConfig) -> Unroll:
    """The `Unroll` of a phase."""
    return Unroll(
        rounds=phase.rounds,
        remat=phase.remat,
        recompute_thoughts=phase.recompute_thoughts,
        truncate_rounds=phase.truncate_rounds,
        truncate_steps=phase.truncate_steps,
    )


def start_phase(phase: PhaseConfig, links: Links) -> TrainState:
    """State before the first step of a phase."""
    return start_state(phase, links, trainable_links(phase, links))


def phase_supervision(
    phase: PhaseConfig, targets: Mapping[str, Targets], *, answerer: str
) -> Supervision:
    """The `Supervision` of a phase: scored texts by round, and the source of thoughts.

    A teacher-forced answerer feeds back the states over its own text of the round ("draft"), over
    its last text, which is then its target in every round ("gold": upstream's, a leak), or a
    rollout, which depends on no text ("rollout").
    """
    is_forced = phase.latents == "teacher_forced"
    if is_forced and phase.feedback == "gold":
        final = jax.tree.map(lambda x: jnp.broadcast_to(x[:, -1:], x.shape), targets[answerer])
        targets = {**targets, answerer: final}
    scored = {answerer: tuple(weight > 0 for weight in round_weights(phase))}
    if phase.role_text_weight:
        scored = dict.fromkeys(targets, (True,) * phase.rounds)
    return Supervision(
        targets=targets,
        scored=FrozenDict(scored),
        teacher_forced=is_forced,
        rollout_feedback=phase.feedback == "rollout",
    )


def round_weights(phase: PhaseConfig) -> tuple[float, ...]:
    """Weight [R] of the answerer's text in each round; default: the last round alone."""
    return phase.round_weights or (0.0,) * (phase.rounds - 1) + (1.0,)


def outer_loss(
    system: System,
    phase: PhaseConfig,
    agents: Mapping[str, Agent],
    links: Links,
    batch: TrainingData,
    *,
    probes: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Cross-entropy of the answer, through all rounds (paper eq. 6).

    Args:
      system: the system (static).
      phase: unrolling and supervision (static).
      agents: by role.
      links: all of them.
      batch: prompts and role texts.
      probes: see `run_rounds`.

    Returns:
      The loss, and {"loss": {role: [R]}, "exact_match": {role: [R]}}, batch means of the texts in
      the loss, NaN in other rounds; and "faults" [R, N], the share of items in which a stage was
      not finite (`Rounds.finite`).
    """
    answerer = system.topology.answerer
    agents = {role: agent.in_training() for role, agent in agents.items()}
    if phase.latents == "teacher_forced" and not phase.recompute_thoughts:
        agents = {role: agent.storing("with weights") for role, agent in agents.items()}
    # Sums over a batch then end at a loop, not in each of its steps.
    links = agents[answerer].partition.whole(links)
    supervision = phase_supervision(phase, batch.targets, answerer=answerer)
    out = run_rounds(
        system,
        agents,
        LatentChannel(system, links),
        batch.prompts,
        phase_unroll(phase),
        supervision,
        probes=probes,
    )
    weights = round_weights(phase)
    by_role = {role: score.loss.mean(axis=1) for role, score in out.scores.items()}  # [R]
    loss = (by_role[answerer] * jnp.asarray(weights)).sum() / sum(weights)
    if phase.role_text_weight:
        loss += phase.role_text_weight * sum(x.mean() for x in by_role.values()) / len(by_role)
    exact_match = {role: score.exact_match.mean(axis=1) for role, score in out.scores.items()}
    scored: Mapping[str, tuple[bool, ...]] = supervision.scored or {}
    known = {role: jnp.asarray(scored[role]) for role in by_role}
    details = {"loss": by_role, "exact_match": exact_match}
    details = {
        name: {role: jnp.where(known[role], x, jnp.nan) for role, x in values.items()}
        for name, values in details.items()
    }
    return loss, details | {"faults": jnp.mean(~out.finite, axis=1)}


def outer_step(
    system: System,
    phase: PhaseConfig,
    agents: Mapping[str, Agent],
    batch: TrainingData,
    state: TrainState,
) -> tuple[TrainState, dict[str, Any]]:
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

    def loss_of(trained: Any, probes: Any, batch: TrainingData) -> tuple[jax.Array, dict[str, Any]]:
        links = with_trained(state.params, trained)
        return outer_loss(system, phase, agents, links, batch, probes=probes)

    def value_and_grad(trained: Any, batch: TrainingData) -> Any:
        """Loss and metrics, with the squared norm of the gradient at each edge in each round."""
        probes = crossing_probes(system, rounds=phase.rounds, batch=len(batch))
        (loss, details), (grads, reaching) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(trained, probes, batch)
        squares = {name: jnp.square(x).sum((1, 2, 3)) for name, x in reaching.items()}
        return (loss, details | {"squares": squares}), grads

    trained = trainable_links(phase, state.params)
    (loss, details), grads = mean_over_parts(value_and_grad, trained, batch, phase.accumulation)
    updates, optimizer = make_optimizer(phase).update(grads, state.optimizer, trained)
    links = with_trained(state.params, optax.apply_updates(trained, updates))
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "link_grad_norm": {
            name: optax.tree.norm(grad)
            for part in (grads.inner, grads.outer)
            for name, grad in part.items()
        },
        # Each item's loss is a term of a mean over items, in a part of the batch or in all.
        "edge_grad_norm": {
            name: jnp.sqrt(x / phase.accumulation) for name, x in details["squares"].items()
        },
        "text_loss": details["loss"],
        "text_exact_match": details["exact_match"],
        "faults": details["faults"],
    }
    return state.replace(step=state.step + 1, params=links, optimizer=optimizer), metrics
