"""The outer loop as a whole: what is compiled, logged, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmas_jax.assembly import Team
from rmas_jax.checkpoints import CheckpointStore
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.sharding import put_batch, replicated, state_shardings
from rmas_jax.training.batches import Batches, TrainingData
from rmas_jax.training.curves import Curves
from rmas_jax.training.outer import outer_step, start_phase
from rmas_jax.training.rollouts import roll_outs


class DivergedError(RuntimeError):
    """The loss is not a number; the message names phase, step and the last good checkpoint."""


def run_phase(
    team: Team,
    links: Any,
    data: TrainingData,
    validation: TrainingData,
    config: OuterConfig,
    phase: PhaseConfig,
    *,
    key: jax.Array,
    directory: Path,
    curves: Curves,
    progress: bool = True,
) -> Any:
    """Runs, or resumes, one phase of the outer loop; returns all links.

    Args:
      team: the system and its agents.
      links: where they start.
      data: training items.
      validation: held-out items.
      config: of the outer loop.
      phase: the phase.
      key: order of the batches.
      directory: of the checkpoints.
      curves: gets losses and gradient norms.
      progress: whether to show a bar.

    Raises:
      DivergedError: the loss or a gradient is not finite.
    """
    state = start_phase(phase, jax.tree.map(jnp.copy, links))  # steps donate it
    shardings = state_shardings(state, team.mesh)
    state = jax.device_put(state, shardings)
    step_fn = jax.jit(
        outer_step,
        static_argnums=(0, 1),
        donate_argnums=4,
        out_shardings=None if team.mesh is None else (shardings, replicated(team.mesh)),
    )
    batches = Batches(
        data, batch_size=phase.batch_size, key=key, text_width=team.system.latent_steps
    )
    with CheckpointStore(directory, keep=config.keep_checkpoints) as store:
        if found := store.restore_newest(state):
            _, state = found
        first = int(state.step)
        curves.truncate(phase.name, first)
        bar = tqdm(
            range(first, phase.steps),
            initial=first,
            total=phase.steps,
            desc=f"outer loop, {phase.name}",
            disable=not progress,
        )
        for step in bar:
            batch = put_batch(batches[step], team.mesh)
            state, metrics = step_fn(team.system, phase, team.agents, batch, state)
            done = step + 1
            if step % config.log_every == 0 or done == phase.steps:
                metrics = jax.device_get(metrics)
                if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                    raise DivergedError(
                        f"phase {phase.name}, step {step}: loss {metrics['loss']}, gradient norm "
                        f"{metrics['grad_norm']}; the last good checkpoint is in {directory}"
                    )
                curves.write("outer", phase.name, step, **_flat(metrics))
                bar.set_postfix(loss=f"{metrics['loss']:.3f}")
            if done % config.validation_every == 0 or done == phase.steps:
                curves.write(
                    "outer",
                    f"{phase.name} (validation)",
                    step,
                    **_validate(team, state.links, validation, rounds=phase.rounds),
                )
            if done % config.checkpoint_every == 0 or done == phase.steps:
                store.save(done, state)
    return state.links


def _validate(team: Team, links: Any, data: TrainingData, *, rounds: int) -> dict[str, Any]:
    """Loss of the last round's answer, and the share of right texts by role and round."""
    answerer = team.system.topology.answerer
    loss, right = [], []
    for _, out, counts in roll_outs(team, links, data, rounds=rounds):
        loss.append(out.losses[answerer][-1, counts])
        right.append({role: values[:, counts] for role, values in out.right.items()})
    shares = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1).mean(1), *right)
    return {"loss": float(np.concatenate(loss).mean()), **_flat({"right": shares})}


def _flat(tree: Any) -> dict[str, float | list[float]]:
    """Nested metrics -> {"a/b": number or list}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(key.key) for key in path): np.asarray(leaf).round(6).tolist()
        for path, leaf in leaves
    }
