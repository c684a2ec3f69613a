"""The outer loop: a phase is a resumable loop over steps, with hooks after each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.host.preemption import PreemptedError, end_is_due
from rmas_jax.host.processes import is_first
from rmas_jax.links import Links
from rmas_jax.sharding import put_batch, replicated, state_shardings
from rmas_jax.team import Team
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.hooks import Hook, StepEvent
from rmas_jax.training.outer.phase_hooks import PhaseHooks
from rmas_jax.training.outer.step import OuterState, outer_step, start_phase

log = logging.getLogger(__name__)


def run_phase(
    team: Team,
    links: Links,
    data: TrainingData,
    validation: TrainingData,
    config: OuterConfig,
    phase: PhaseConfig,
    *,
    key: jax.Array,
    directory: Path,
    curves: Curves,
    sources: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: bool = True,
) -> Links:
    """Runs, or resumes, one phase of the outer loop; returns all links.

    A step is a function of the state before it, the key and the step's number, so an interrupted
    phase gives the same links, bit for bit, on the same mesh.

    Args:
      team: the system, its agents and their mesh.
      links: initial links.
      data: training items.
      validation: held-out items.
      config: of the outer loop.
      phase: the phase.
      key: for the order of the batches.
      directory: of the checkpoints.
      curves: receives losses and gradient norms by role, link, edge and round; throughput; memory.
      sources: role -> source of its agent; recorded beside the checkpoints.
      hooks: called after every step and after those of `PhaseHooks`; see `rmas_jax.training.hooks`.
      progress: whether to show a bar (in the first process).

    Raises:
      DivergedError: an agent's numbers, a loss, a gradient or a link are not finite, or the loss
        is above `config.max_loss`; the message gives the place and the saved step.
      PreemptedError: after SIGTERM; the current step is saved.
      ConfigError: see `Batches`.
      CheckpointError: the directory's checkpoints were made with another key or other agents, or
        none can be read.
    """
    batches = phase_batches(team, phase, data, key=key)
    if batches.left_out:
        log.warning(
            "%s: %d items are left out: they have texts of fewer tokens than latent_steps=%d, from "
            "which teacher forcing cannot take its thoughts",
            phase.name,
            batches.left_out,
            team.system.latent_steps,
        )
    state, step_fn = compile_step(team, phase, links)
    made_with = {"key": jax.random.key_data(key).tolist(), "agents": dict(sources or {})}
    with open_checkpoints(directory, keep=config.keep_checkpoints, made_with=made_with) as store:
        if found := store.restore_newest(state):
            _, state = found
        first = int(state.step)
        own = PhaseHooks(team, phase, config, batches, validation, store, curves)
        own.drop_curves(first)
        with (
            batches.read_ahead(first, phase.steps) as ahead,
            _progress_bar(phase, first, is_shown=progress and is_first()) as bar,
        ):
            after_step = (*own.hooks(), *hooks, _shown_in(bar))
            for step, batch in zip(range(first, phase.steps), ahead, strict=False):
                on_mesh = put_batch(batch, team.mesh)
                state, metrics = step_fn(team.system, phase, team.agents, on_mesh, state)
                ends = step + 1 == phase.steps or end_is_due()
                event = StepEvent(step, phase.steps, state, metrics, ends)
                for hook in after_step:
                    hook(event)
                if event.ends and not event.is_last:
                    raise PreemptedError(
                        f"phase {phase.name} stopped after step {step} of {phase.steps} and is "
                        f"saved in {directory}"
                    )
        if config.keep == "best":
            state = store.restore_best(state)
    return state.links


def phase_batches(team: Team, phase: PhaseConfig, data: TrainingData, *, key: jax.Array) -> Batches:
    """The batches of a phase's steps."""
    return Batches(
        data,
        batch_size=phase.batch_size,
        key=key,
        text_width=team.system.latent_steps,
        needs_texts=phase.latents == "teacher_forced",
    )


def compile_step(team: Team, phase: PhaseConfig, links: Links) -> tuple[OuterState, Any]:
    """The state before a phase, on the team's mesh, and the jitted `outer_step` on that mesh.

    The step donates its state; `links` are copied.
    """
    state = start_phase(phase, jax.tree.map(jnp.copy, links))
    shardings = state_shardings(state, team.mesh)
    step = jax.jit(
        outer_step,
        static_argnums=(0, 1),
        donate_argnums=4,
        out_shardings=None if team.mesh is None else (shardings, replicated(team.mesh)),
    )
    return jax.device_put(state, shardings), step


def _progress_bar(phase: PhaseConfig, first: int, *, is_shown: bool) -> tqdm:
    return tqdm(
        initial=first,
        total=phase.steps,
        desc=f"outer loop, {phase.name}",
        disable=not is_shown,
    )


def _shown_in(bar: tqdm) -> Hook:
    """Advances a bar by a step; shows the latest loss beside it."""

    def show(event: StepEvent) -> None:
        if row := event.results.get("metrics"):
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        bar.update()

    return show
