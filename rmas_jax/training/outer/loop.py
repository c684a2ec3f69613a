"""The outer loop as a whole: what is compiled, logged, saved and resumed."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmas_jax.checkpoints import CheckpointStore
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.host.nonfinite import NonFiniteError, first_fault, gradient_fault
from rmas_jax.host.preemption import PreemptedError, end_is_due
from rmas_jax.host.processes import is_first
from rmas_jax.sharding import put_batch, replicated, state_shardings
from rmas_jax.team import Team
from rmas_jax.topology import Topology
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.divergence import DivergedError, broken_links
from rmas_jax.training.outer.step import OuterState, outer_step, start_phase
from rmas_jax.training.rollouts import roll_outs

log = logging.getLogger(__name__)


def phase_batches(team: Team, phase: PhaseConfig, data: TrainingData, *, key: jax.Array) -> Batches:
    """What the steps of a phase read."""
    return Batches(
        data,
        batch_size=phase.batch_size,
        key=key,
        text_width=team.system.latent_steps,
        needs_texts=phase.latents == "teacher_forced",
    )


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
    sources: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Any:
    """Runs, or resumes, one phase of the outer loop; returns all links.

    What a step does follows from the state before it, the key and the step's number, so a phase
    that was interrupted, in whatever way, comes to the same links, bit for bit, on the same mesh.

    Args:
      team: the system, its agents and the mesh they lie on.
      links: where they start.
      data: training items.
      validation: held-out items.
      config: of the outer loop.
      phase: the phase.
      key: order of the batches.
      directory: of the checkpoints.
      curves: gets losses and gradient norms by role, link, edge and round; throughput; memory.
      sources: role -> where its agent comes from; recorded beside the checkpoints.
      progress: whether to show a bar (of several processes, the first does).

    Raises:
      DivergedError: what an agent makes, a loss, a gradient or a link is not finite, or the loss
        is above `config.max_loss`; the message says where, and what is saved.
      PreemptedError: SIGTERM came; the step that ran is saved.
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
    max_loss = largest_loss(team, phase) if config.max_loss is None else config.max_loss
    made_with = {"key": jax.random.key_data(key).tolist(), "agents": dict(sources or {})}
    with (
        CheckpointStore(directory, keep=config.keep_checkpoints, made_with=made_with) as store,
        contextlib.ExitStack() as reading,
    ):
        if found := store.restore_newest(state):
            _, state = found
        first = int(state.step)
        series, validated = phase.name, f"{phase.name} (validation)"
        curves.truncate(series, first)
        curves.truncate(validated, first)
        bar = tqdm(
            range(first, phase.steps),
            initial=first,
            total=phase.steps,
            desc=f"outer loop, {phase.name}",
            disable=not (progress and is_first()),
        )
        unread: list[tuple[int, Any]] = []  # steps, and their metrics on the device
        clock = None  # when the last row was logged; the first waits for the compiler
        ahead = reading.enter_context(batches.read_ahead(first, phase.steps))
        for step in bar:
            batch = put_batch(next(ahead), team.mesh)
            state, metrics = step_fn(team.system, phase, team.agents, batch, state)
            unread.append((step, metrics))
            done = step + 1
            ends = done == phase.steps or end_is_due()
            validates = done % config.validation_every == 0 or done == phase.steps
            saves = done % config.checkpoint_every == 0 or validates or ends
            if step % config.log_every == 0 or saves:
                items = len(unread) * phase.batch_size
                metrics = _read(unread, team.system.topology, phase, batches, store, max_loss)
                now = time.perf_counter()
                if clock is not None:
                    metrics["items_per_second"] = items / (now - clock)
                metrics |= peak_memory()
                curves.write("outer", series, step, **_flat(metrics))
                bar.set_postfix(loss=f"{metrics['loss']:.3f}")
                unread, clock = [], now
            loss = None
            if saves and (broken := broken_links(state.links)):
                raise _diverged(phase, step, f"after it, not finite: {', '.join(broken)}", store)
            if validates:
                try:
                    values = _validate(team, state.links, validation, phase)
                except NonFiniteError as error:
                    raise _diverged(phase, step, f"validation: {error}", store) from None
                if not math.isfinite(values["loss"]):
                    raise _diverged(phase, step, f"validation loss {values['loss']}", store)
                curves.write("outer", validated, step, **values)
                loss, clock = values["loss"], None
            if saves:
                store.save(done, state, validation_loss=loss)
            if ends and done < phase.steps:
                raise PreemptedError(
                    f"phase {phase.name} stopped after step {step} of {phase.steps} and is saved "
                    f"in {directory}"
                )
        if config.keep == "best":
            state = store.restore_best(state)
    return state.links


def peak_memory() -> dict[str, int]:
    """The most that this process has held so far, and its first device, if that tells."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if on_device := jax.local_devices()[0].memory_stats():
        peaks["device_bytes"] = on_device["peak_bytes_in_use"]
    return peaks


def largest_loss(team: Team, phase: PhaseConfig) -> float:
    """Twice the loss of guessing among all tokens, for each text that counts in it."""
    guessing = {role: math.log(m.config.vocab_size) for role, m in team.system.models.items()}
    of_texts = phase.role_text_weight * sum(guessing.values()) / len(guessing)
    return 2 * (guessing[team.system.topology.answerer] + of_texts)


def compile_step(team: Team, phase: PhaseConfig, links: Any) -> tuple[OuterState, Any]:
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


def _read(
    unread: list[tuple[int, Any]],
    topology: Topology,
    phase: PhaseConfig,
    batches: Batches,
    store: CheckpointStore,
    max_loss: float,
) -> dict[str, Any]:
    """The newest metrics on the host, after a look at all of them."""
    on_host = jax.device_get([metrics for _, metrics in unread])
    for (step, _), metrics in zip(unread, on_host, strict=True):
        finite = metrics.pop("faults")[:, None] == 0  # in all items
        fault = first_fault(topology.order, finite)
        if fault or not (metrics["loss"] <= max_loss and np.isfinite(metrics["grad_norm"])):
            lost = gradient_fault(topology.order, topology.edges, metrics["edge_grad_norm"])
            first = fault.error("latents, loss") if fault else lost
            raise _diverged(
                phase,
                step,
                f"loss {metrics['loss']} (at most {max_loss:.1f}: outer.max_loss), gradient norm "
                f"{metrics['grad_norm']}; {f'first {first}; ' if first else ''}rows "
                f"{batches.rows(step).tolist()} of the training items",
                store,
            )
    return on_host[-1]


def validation_rows(phase: PhaseConfig) -> int:
    """Items that are validated at once: as many as a step holds at once, which is known to fit."""
    return phase.batch_size // phase.accumulation


def _diverged(phase: PhaseConfig, step: int, what: str, store: CheckpointStore) -> DivergedError:
    saved = store.steps()
    last = store.directory / str(saved[-1]) if saved else "none yet"
    return DivergedError(f"phase {phase.name}, step {step}: {what}; last good checkpoint: {last}")


def _validate(team: Team, links: Any, data: TrainingData, phase: PhaseConfig) -> dict[str, Any]:
    """Loss of the last round's answer; by role and round, loss and share of right texts."""
    size = validation_rows(phase)
    parts = [
        jax.tree.map(lambda x, counts=rows >= 0: x[:, counts], (out.losses, out.exact_match))
        for _, out, rows in roll_outs(team, links, data, rounds=phase.rounds, batch_size=size)
    ]
    losses, exact_match = jax.tree.map(
        lambda *of_part: np.concatenate(of_part, axis=1).mean(1), *parts
    )
    loss = float(losses[team.system.topology.answerer][-1])
    return {"loss": loss, **_flat({"text_loss": losses, "text_exact_match": exact_match})}


def _flat(tree: Any) -> dict[str, Any]:
    """Nested metrics -> {"a/b": number or list}, of six digits that count.

    None stands for what is not finite, which JSON does not have.
    """

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(v) for v in value]
        if isinstance(value, int):
            return value
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return {
        "/".join(str(key.key) for key in path): number(np.asarray(leaf).tolist())
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
