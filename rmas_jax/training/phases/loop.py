"""A phase as a resumable loop over steps, with hooks after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.config import OuterConfig
from rmas_jax.host.preemption import PreemptedError, end_is_due
from rmas_jax.host.processes import is_first
from rmas_jax.host.storage import Mirror
from rmas_jax.planning.executables import ahead_of_time
from rmas_jax.sharding import put_batch, replicated, state_shardings, with_shardings
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.encoding import EncodedItems
from rmas_jax.training.hooks import Hook, StepEvent
from rmas_jax.training.phases.hooks import PhaseHooks
from rmas_jax.training.phases.step import TrainState
from rmas_jax.training.phases.trainable import Trainable


def run_steps(
    trainable: Trainable,
    data: EncodedItems,
    validation: EncodedItems,
    config: OuterConfig,
    *,
    key: jax.Array,
    directory: Path,
    mirror: Mirror | None = None,
    curves: Curves,
    sources: Mapping[str, Any] | None = None,
    hooks: Sequence[Hook] = (),
    progress: bool = True,
) -> Any:
    """Runs, or resumes, one phase; returns its parameters after the last step, or the best ones.

    A step is a function of the state before it, the key and the step's number, so an interrupted
    phase gives the same parameters, bit for bit, on the same mesh.

    Args:
      trainable: what to train.
      data: training items.
      validation: held-out items.
      config: checkpoints, logs and validations.
      key: for the order of the batches.
      directory: of the checkpoints.
      mirror: the same folder on object storage.
      curves: receives losses and gradient norms, throughput and memory.
      sources: role -> source of its agent; recorded beside the checkpoints.
      hooks: called after every step and after those of `PhaseHooks`; see `rmas_jax.training.hooks`.
      progress: whether to show a bar (in the first process).

    Raises:
      DivergedError: an agent's numbers, a loss, a gradient or a parameter are not finite, or the
        loss is above `config.max_loss`; the message gives the place and the saved step.
      PreemptedError: after SIGTERM; the current step is saved.
      ConfigError: see `Batches`.
      CheckpointError: the directory's checkpoints were made with another key or other agents, or
        none can be read.
    """
    steps, name = trainable.config.steps, trainable.name
    batches = trainable.batches(data, key=key)
    state, step_fn = compile_step(trainable)
    made_with = {"key": jax.random.key_data(key).tolist(), "agents": dict(sources or {})}
    with open_checkpoints(
        directory, keep=config.keep_checkpoints, made_with=made_with, mirror=mirror
    ) as store:
        if found := store.restore_newest(state):
            _, state = found
        first = int(state.step)
        own = PhaseHooks(trainable, config, batches, validation, store, curves)
        own.drop_curves(first if found else -1)
        if config.keep == "best" and not found:
            own.save_start(StepEvent(-1, steps, state, metrics=None, ends=False))
        with (
            batches.read_ahead(first, steps) as ahead,
            _progress_bar(trainable, first, is_shown=progress and is_first()) as bar,
        ):
            after_step = (*own.hooks(), *hooks, _shown_in(bar))
            for step, batch in zip(range(first, steps), ahead, strict=False):
                on_mesh = put_batch(batch, trainable.mesh, rows=batches.batch_size)
                state, metrics = step_fn(trainable.agents, on_mesh, state)
                ends = step + 1 == steps or end_is_due()
                event = StepEvent(step, steps, state, metrics, ends)
                for hook in after_step:
                    hook(event)
                if event.ends and not event.is_last:
                    raise PreemptedError(
                        f"phase {name} stopped after step {step} of {steps} and is saved in "
                        f"{directory}"
                    )
        if config.keep == "best":
            state = store.restore_best(state)
    return state.params


def compile_step(trainable: Trainable) -> tuple[TrainState, Any]:
    """The state before a phase, on the mesh, and the jitted step, which donates its state.

    The step may come from a file of executables, see `rmas_jax.planning.executables`.
    """
    state = trainable.start(jax.tree.map(jnp.copy, trainable.initial))
    shardings = state_shardings(state, trainable.mesh)
    step = ahead_of_time(_jitted_step(trainable, shardings))
    return jax.device_put(state, shardings), step


def abstract_step(trainable: Trainable) -> tuple[TrainState, Any]:
    """`compile_step` with a `jax.ShapeDtypeStruct` for each array of the state.

    The agents and initial parameters of `trainable` may be such shapes, too.
    """
    state = jax.eval_shape(trainable.start, trainable.initial)
    shardings = state_shardings(state, trainable.mesh)
    return with_shardings(state, shardings), _jitted_step(trainable, shardings)


def _jitted_step(trainable: Trainable, shardings: Any) -> Any:
    """The step; `shardings` are those of the state, None without a mesh."""
    return jax.jit(
        trainable.step,
        donate_argnums=2,
        out_shardings=None if trainable.mesh is None else (shardings, replicated(trainable.mesh)),
    )


def _progress_bar(trainable: Trainable, first: int, *, is_shown: bool) -> tqdm:
    return tqdm(
        initial=first,
        total=trainable.config.steps,
        desc=f"{trainable.loop} loop, {trainable.name}",
        disable=not is_shown,
    )


def _shown_in(bar: tqdm) -> Hook:
    """Advances a bar by a step; shows the latest loss beside it."""

    def show(event: StepEvent) -> None:
        if row := event.results.get("metrics"):
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        bar.update()

    return show
