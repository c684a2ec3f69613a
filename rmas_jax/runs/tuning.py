"""The step of a run that tunes the answerer, and the tuned answerers of its evaluation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax

from rmas_jax.agents.adapters import Adapter, Tuned, tuned_agent
from rmas_jax.config import TuningConfig, with_budgets
from rmas_jax.config.training import TUNING_KINDS
from rmas_jax.host.processes import broadcast_from_first, on_all
from rmas_jax.interop.adapter_files import load_adapter, save_adapter
from rmas_jax.links import count_parameters
from rmas_jax.models import CheckpointError
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.resolve import Resolved
from rmas_jax.runs.resources import answering_agent
from rmas_jax.sharding import to_host
from rmas_jax.team import Team
from rmas_jax.training.curves import Curves
from rmas_jax.training.hooks import Hook
from rmas_jax.training.phases.loop import run_steps
from rmas_jax.training.tuning.loop import (
    TrainableAdapter,
    abstract_adapter,
    encode_answers,
    new_adapter,
)

WAY_OUT = "put back a copy, or delete it and run again: it is then written from its checkpoints"


def tune_answerer(
    resolved: Resolved, *, key: jax.Array, curves: Curves, hooks: Sequence[Hook], progress: bool
) -> None:
    """Trains an adapter of the answerer for each entry of `tuning`; writes the adapters.

    Args:
      resolved: the run.
      key: of all entries; each takes its own by its kind.
      curves, hooks, progress: see `run_steps`, as for its errors.
    """
    config, team, files = resolved.config, resolved.team, resolved.files
    data = encode_answers(team, resolved.train)
    validation = encode_answers(team, resolved.validation[: config.outer.validation_size])
    for entry in with_budgets(config.tuning, config.outer):
        start, order = jax.random.split(jax.random.fold_in(key, TUNING_KINDS.index(entry.kind)))
        adapter = run_steps(
            TrainableAdapter(team, entry.name, entry, new_adapter(team, entry, start), entry.remat),
            data,
            validation,
            config.outer,
            key=order,
            directory=files.checkpoints_of(entry.name),
            mirror=files.checkpoint_mirror(entry.name),
            curves=curves,
            sources=resolved.agents,
            hooks=hooks,
            progress=progress,
        )
        save = functools.partial(save_adapter, files.adapter(entry.name), to_host(adapter))
        broadcast_from_first(save)


def tuned_answerers(resolved: Resolved) -> dict[str, Tuned]:
    """The answerer with each adapter of the run that is evaluated, by method.

    Raises:
      CheckpointError: an adapter's file is damaged; the message adds the remedy.
    """
    team = resolved.team
    agent = team.agents[team.system.topology.answerer]
    adapters = {
        entry.name: on_all(functools.partial(own_adapter, resolved.files, team, entry))
        for entry in resolved.config.tuning
        if entry.name in resolved.methods
    }
    return {
        name: Tuned(
            answering_agent(tuned_agent(agent, adapter, team.mesh), resolved.config),
            count_parameters(adapter),
        )
        for name, adapter in adapters.items()
    }


def own_adapter(files: RunFiles, team: Team, entry: TuningConfig) -> Adapter:
    """The adapter that a run has trained for an entry, on the host; raises as `tuned_answerers`.

    `team` may be abstract.
    """
    path = files.adapter(entry.name)
    try:
        return load_adapter(path, abstract_adapter(team, entry))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {WAY_OUT}") from None
