"""The plan of a run, without running it: sizes, shapes, steps, and what its programs need.

Programs are compiled from shapes, for the devices of this process or for a slice that is not at
hand; no weight is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rmas_jax.agents.agent import load_agent
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.host.checksums import read_sealed
from rmas_jax.host.errors import InputError
from rmas_jax.links import count_parameters
from rmas_jax.planning.chips import Slice
from rmas_jax.planning.compiling import Compilations, compile_whole
from rmas_jax.planning.executables import without_cache
from rmas_jax.planning.programs import ProgramPlan, plan_chains, tree_bytes
from rmas_jax.planning.table import GIBIBYTE, plan_table
from rmas_jax.planning.without_code import WithoutCode
from rmas_jax.runs.learned_data import encode_inner
from rmas_jax.runs.plan_inputs import (
    PhaseInput,
    RunInputs,
    Widths,
    inputs_of_data,
    inputs_of_widths,
)
from rmas_jax.runs.plan_programs import program_chains
from rmas_jax.runs.plan_shapes import abstract_links
from rmas_jax.runs.resolve import Resolved, resolve
from rmas_jax.runs.resources import mesh_of, with_mesh
from rmas_jax.sharding import MESH_AXES, batch_shards
from rmas_jax.team import Team
from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.states.cache import check_room
from rmas_jax.training.states.token_states import state_bytes
from rmas_jax.training.tuning.loop import abstract_adapter

MEBIBYTE = 2**20
# Devices over which a mesh splits weights if they fit: over more, shards are thinner, groups of
# collectives larger, and a step takes longer (docs/how-to/plan.md).
FSDP = 16
WEIGHTS_SHARE = 1 / 2  # of a device's memory, at most
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class RunPlan:
    """The plan of a run."""

    inputs: RunInputs
    described: tuple[str, ...]  # lines on agents, links and data
    programs: tuple[ProgramPlan, ...]
    wanted: Slice | None  # None: the devices of this process
    compiled: tuple[tuple[Any, Any], ...] = ()  # programs as lowered and as compiled

    @property
    def mesh(self) -> Mapping[str, int]:
        """Axis -> devices."""
        assert self.inputs.team.mesh is not None  # a run has one
        return {axis: self.inputs.team.mesh.shape[axis] for axis in MESH_AXES}

    def lines(self) -> Iterator[str]:
        """Yields the plan as text."""
        yield from self.described
        yield from plan_table(
            self.programs,
            self.wanted,
            dtype=self.inputs.config.runtime.dtype,
            shards=batch_shards(self.inputs.team.mesh),
        )

    def as_json(self) -> dict[str, Any]:
        """The plan as values of JSON; sizes in bytes, times in seconds."""
        config = self.inputs.config
        return {
            "name": config.name,
            "slice": None if self.wanted is None else str(self.wanted),
            "mesh": dict(self.mesh),
            "programs": [
                program.as_json(self.wanted, dtype=config.runtime.dtype)
                for program in self.programs
            ],
        }


def plan_run(
    config: RunConfig,
    *,
    mesh: Mesh | None = None,
    wanted: Slice | None = None,
    widths: Widths | None = None,
    only_throughput: bool = False,
    cache: str | Path | None = None,
    is_executable: bool = False,
) -> RunPlan:
    """Plans a run: compiles its programs for their longest batches, without running them.

    Programs for TPUs that are not at hand are compiled up to their machine code.

    Args:
      config: of the run.
      mesh: its devices; None: those of this process.
      wanted: the slice of these devices, for its limits and prices.
      widths: assumed where tokenizers or data are not at hand; None: these must be.
      only_throughput: leaves out programs on which the throughput does not depend.
      cache: folder of earlier compilations, see `planning.compiling`.
      is_executable: with machine code in any case, see `RunPlan.compiled`.

    Raises:
      InputError: an input cannot be used; or states of the dialogues have no room.
    """
    if mesh is None:
        config = with_mesh(config)
        mesh = mesh_of(config)
    described: list[str] = []
    try:
        resolved = resolve(config, mesh=mesh, is_abstract=True)
        inputs = inputs_of_data(resolved)
        described += describe_run(resolved, inputs)
    except InputError as error:
        if widths is None:
            raise
        inputs = inputs_of_widths(config, mesh, widths)
        described += describe_mesh(mesh)
        described += describe_team(inputs.team)
        described.append(
            f"assumed, as tokenizers or data are not at hand: prompts of {widths.prompt} tokens "
            f"and {widths.body} in every round besides the slots, texts of {widths.text}"
        )
        log.warning("planned with assumed widths: %s", error)
    chains = program_chains(inputs, only_throughput=only_throughput)
    # JAX's cache on disk takes programs for TPUs that are not at hand, and fails to read them.
    tpus = wanted if wanted is not None and wanted.chip.topology is not None else None
    compiler = compile_whole if tpus is None or is_executable else WithoutCode(tpus)
    with contextlib.nullcontext() if tpus is None else without_cache():
        found = plan_chains(chains, Compilations(cache, compiler))
    compiled = [(x.lowered, x.executable) for x in found if x.executable is not None]
    plans = tuple(x.plan for x in found)
    return RunPlan(inputs, tuple(described), plans, wanted, tuple(compiled))


def describe_run(resolved: Resolved, inputs: RunInputs) -> Iterator[str]:
    """Yields lines on agents, data and steps of a run.

    Raises:
      ConfigError: states of the dialogues fit neither on the disk nor in memory.
    """
    config, team, files = resolved.config, resolved.team, resolved.files
    assert team.mesh is not None  # a run has one
    yield from describe_mesh(team.mesh)
    yield from describe_team(team)
    inner, evaluation = config.inner, config.evaluation
    yield (
        f"inner loop: {inner.repeats} x {inner.steps} steps of {inner.batch_size} tokens per link, "
        f"from the texts of {inner.items or 'all'} items"
        + (f" and {inner.lists} lists of tokens" if inner.lists else "")
    )
    dialogues, _ = encode_inner(resolved)
    yield from describe_states(team, dialogues, inner.cache_gib)
    for phase in inputs.phases:
        yield from describe_phase(team, phase, items=len(resolved.train))
    for entry, _ in inputs.tuning:
        yield (
            f"tuning {entry.name}: {count_parameters(abstract_adapter(team, entry)):,} parameters, "
            f"{entry.steps} steps of {entry.batch_size} items (accumulation={entry.accumulation})"
        )
    yield (
        f"evaluation: {', '.join(resolved.methods)} at rounds "
        f"{', '.join(map(str, evaluation.rounds))} on "
        + ", ".join(f"{b.name} {split}" for b in resolved.benchmarks for split in b.splits)
    )
    for benchmark in resolved.benchmarks:
        yield f"  {benchmark.name}, {benchmark.metric}: {benchmark.description}"
    written = (files.trained_links.parent, files.checkpoints, files.metrics, files.items)
    names = ", ".join(path.name for path in (*written, files.report))
    yield f"written to {files.root}: {names}"
    done = read_sealed(files.timings, error=ConfigError, way_out="put back a copy, or delete it")
    yield f"finished there: {', '.join(done) or 'nothing'}"


def describe_mesh(mesh: Mesh) -> Iterator[str]:
    """Yields a line on the devices."""
    devices = mesh.devices.flat
    known = len(jax.devices()) if devices[0] in jax.devices() else len(devices)
    sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in MESH_AXES)
    yield f"mesh: {sizes} of {known} {devices[0].device_kind} devices"


def describe_team(team: Team) -> Iterator[str]:
    """Yields a line per agent and per link."""
    for role in team.system.topology.order:
        agent = team.agents[role]
        dtypes = " and ".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(agent)}))
        yield (
            f"agent {role}: {agent.config.model_type}, {count_parameters(agent):,} "
            f"parameters, {dtypes}, {tree_bytes(agent) / MEBIBYTE:.1f} MiB on each device"
        )
    for part, links in vars(abstract_links(team)).items():
        for name, params in links.items():
            variant = getattr(team.system, part)[name].variant
            yield f"{part} link {name}: {variant}, {count_parameters(params):,} parameters, float32"


def describe_states(
    team: Team, dialogues: Mapping[str, Dialogues], cache_gib: float
) -> Iterator[str]:
    """Yields the sizes of the agents' states over their texts, on disk or in memory."""
    sizes = {role: state_bytes(team, role, read) for role, read in dialogues.items()}
    for role, size in sizes.items():
        read = dialogues[role]
        yield (
            f"  states of {role}: {read.text_lengths.sum():,}, {size / GIBIBYTE:.2f} GiB, from "
            f"{len(read.tokens):,} texts of up to {read.tokens.lengths.max():,} tokens"
        )
    check_room(sizes, int(cache_gib * GIBIBYTE))


def describe_phase(team: Team, phase: PhaseInput, *, items: int) -> Iterator[str]:
    """Yields the shapes of a step of an outer-loop phase."""
    config, batches = phase.config, phase.batches
    assert batches is not None  # of data at hand
    yield (
        f"phase {config.name}: {config.latents}, {config.rounds} rounds, {config.steps} steps of "
        f"{config.batch_size} items (accumulation={config.accumulation}); {items} items, "
        f"{batches.steps_per_epoch} steps per epoch, groups by length: {len(batches.groups)}"
    )
    for role in team.system.topology.order:
        prompt = phase.batch.prompts[role]
        read = f"prefix {prompt.prefix_ids.shape[1]}, body {prompt.body_ids.shape[2]}"
        text = phase.batch.targets.get(role)
        written = "no text" if text is None else f"text {text.ids.shape[2]}"
        yield f"  longest batch, {role}: {read}, {written} tokens per item and round"


def mesh_sizes(config: RunConfig, wanted: Slice) -> tuple[int, int, int]:
    """Sizes of the mesh axes on a slice, for a run whose own mesh has another number of devices.

    The batch is split over as many devices as divide all of its batch sizes; the rest is `model`.
    Of the devices of the batch `fsdp` has at most `FSDP`, or as many as the agents' weights need to
    fit; the rest is `data`.
    """
    batches = [phase.batch_size // phase.accumulation for phase in config.outer.phases]
    batch = math.gcd(*batches, config.evaluation.batch_size, wanted.devices)
    model = wanted.devices // batch
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    preferred = max(n for n in divisors if n <= FSDP)
    needed = weight_bytes(config) / (WEIGHTS_SHARE * model * wanted.chip.memory)
    fsdp = min((n for n in divisors if n >= max(preferred, needed)), default=batch)
    return batch // fsdp, fsdp, model


def weight_bytes(config: RunConfig) -> int:
    """Bytes of the agents' weights, all together; of each agent, only `config.json` is read.

    Raises:
      CheckpointError, UnsupportedModelError: the configuration of an agent is unusable.
    """
    runtime = config.runtime
    return sum(
        tree_bytes(load_agent(source, runtime.dtype, weights=runtime.weights, is_abstract=True))
        for source in config.system.agents.values()
    )
