"""The plan of a run, without running it: sizes, shapes, steps and device memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rmas_jax.config import ConfigError, PhaseConfig, TuningConfig, with_budgets
from rmas_jax.host.checksums import read_sealed
from rmas_jax.links import LinkConfig, Links, count_parameters, init_link
from rmas_jax.runs.resolve import Resolved, encode_inner, encode_outer
from rmas_jax.sharding import batch_shards, put_batch
from rmas_jax.team import Team
from rmas_jax.training.data.encoding import Dialogues, EncodedItems, TrainingData
from rmas_jax.training.outer.loop import TrainableLinks, phase_batches
from rmas_jax.training.outer.validation import validation_rows
from rmas_jax.training.phases.loop import compile_step
from rmas_jax.training.phases.step import TrainState
from rmas_jax.training.phases.trainable import Trainable
from rmas_jax.training.rollouts import even_batches, roll_out
from rmas_jax.training.states.cache import GIBIBYTE, check_room
from rmas_jax.training.states.token_states import state_bytes
from rmas_jax.training.tuning.loop import TrainableAdapter, encode_answers, new_adapter

MEBIBYTE = 2**20


def describe_run(resolved: Resolved) -> Iterator[str]:
    """Yields the plan of a run, line by line.

    Raises:
      ConfigError: states of the dialogues fit neither on the disk nor in memory.
    """
    config, team, files = resolved.config, resolved.team, resolved.files
    mesh, devices = config.runtime.mesh, jax.devices()
    yield (
        f"mesh: data={mesh.data} x fsdp={mesh.fsdp} x model={mesh.model} of {len(devices)} "
        f"{devices[0].device_kind} devices"
    )
    yield from describe_team(team)
    inner, evaluation = config.inner, config.evaluation
    yield (
        f"inner loop: {inner.repeats} x {inner.steps} steps of {inner.batch_size} tokens per link, "
        f"from the texts of {inner.items or 'all'} items"
    )
    dialogues, _ = encode_inner(resolved)
    yield from describe_states(team, dialogues, inner.cache_gib)
    if data := encode_outer(resolved):
        for phase in config.outer.phases:
            yield from describe_phase(team, phase, *data, key=jax.random.key(config.seed))
    if config.tuning:
        answers = encode_answers(team, resolved.train)
        for entry in with_budgets(config.tuning, config.outer):
            yield from describe_tuning(team, entry, answers, key=jax.random.key(config.seed))
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


def describe_team(team: Team) -> Iterator[str]:
    """Yields a line per agent and per link."""
    for role in team.system.topology.order:
        agent = team.agents[role]
        leaves = jax.tree.leaves(agent)
        dtypes = " and ".join(sorted({leaf.dtype.name for leaf in leaves}))
        held = _held(agent) / MEBIBYTE
        yield (
            f"agent {role}: {agent.config.model_type}, {count_parameters(agent):,} "
            f"parameters, {dtypes}, {held:.1f} MiB on each device"
        )
    for part, links in vars(empty_links(team)).items():
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


def describe_phase(
    team: Team,
    phase: PhaseConfig,
    data: EncodedItems,
    validation: EncodedItems,
    *,
    key: jax.Array,
) -> Iterator[str]:
    """Yields the shapes of a step of an outer-loop phase, and its memory.

    Compiles the step and a validation for the longest batches, without running them.
    """
    batches = phase_batches(team, phase, data, key=key)
    longest = batches.longest()
    yield (
        f"phase {phase.name}: {phase.latents}, {phase.rounds} rounds, {phase.steps} steps of "
        f"{phase.batch_size} items (accumulation={phase.accumulation}); {len(data)} items, "
        f"{batches.steps_per_epoch} steps per epoch, groups by length: {len(batches.groups)}"
    )
    for role in team.system.topology.order:
        prompt = longest.prompts[role]
        read = f"prefix {prompt.prefix_ids.shape[1]}, body {prompt.body_ids.shape[2]}"
        text = longest.targets.get(role)
        written = "no text" if text is None else f"text {text.ids.shape[2]}"
        yield f"  longest batch, {role}: {read}, {written} tokens per item and round"
    state, line = describe_step(TrainableLinks(team, phase, empty_links(team)), longest)
    yield line
    validated = even_batches(
        validation, batch_size=validation_rows(phase), shards=batch_shards(team.mesh)
    )
    longest = max((batch for batch, _ in validated), key=_elements)
    batch = put_batch(longest, team.mesh)
    program = roll_out.lower(team.system, team.agents, state.params, batch, rounds=phase.rounds)
    memory: Any = program.compile().memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    waiting = _held(state.optimizer)  # during validation
    yield (
        f"  memory per device of a validation, {len(longest)} items at once: "
        f"{(needed + waiting) / MEBIBYTE:.1f} MiB"
    )


def describe_tuning(
    team: Team, entry: TuningConfig, data: EncodedItems, *, key: jax.Array
) -> Iterator[str]:
    """Yields the size of an adapter of the answerer, and the memory of a step that trains it."""
    adapter = new_adapter(team, entry, key)
    trainable = TrainableAdapter(team, entry.name, entry, adapter)
    yield (
        f"tuning {entry.name}: {count_parameters(adapter):,} parameters, {entry.steps} steps of "
        f"{entry.batch_size} items (accumulation={entry.accumulation})"
    )
    yield describe_step(trainable, trainable.batches(data, key=key).longest())[1]


def describe_step(trainable: Trainable, longest: TrainingData) -> tuple[TrainState, str]:
    """The state before a phase, and a line of the memory of its step on the longest batch."""
    state, step = compile_step(trainable)
    batch = put_batch(longest, trainable.mesh)
    memory: Any = step.lower(trainable.agents, batch, state).compile().memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return state, (
        f"  memory per device, by the compiler, longest batch: "
        f"{(kept + memory.temp_size_in_bytes) / MEBIBYTE:.1f} MiB, of which "
        f"{kept / MEBIBYTE:.1f} MiB agents, train state and batch"
    )


def empty_links(team: Team) -> Links:
    """Zeros of the shapes of all links."""

    def zeros(link: LinkConfig) -> Any:
        shapes = jax.eval_shape(functools.partial(init_link, link), jax.random.key(0))
        return jax.tree.map(jnp.zeros_like, shapes)

    return Links(
        inner={role: zeros(link) for role, link in team.system.inner.items()},
        outer={edge: zeros(link) for edge, link in team.system.outer.items()},
    )


def _held(tree: Any) -> int:
    """Bytes on each device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def _elements(batch: TrainingData) -> int:
    return sum(array.size for array in jax.tree.leaves(batch))
