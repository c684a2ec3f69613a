"""What a run's programs read, as shapes: from its data and tokenizers, or of assumed widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from rmas_jax.config import PhaseConfig, RunConfig, TuningConfig, with_budgets
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.driver import LoadedBenchmark
from rmas_jax.evaluation.settings import with_defaults
from rmas_jax.prompts import StagePrompt, declared_width
from rmas_jax.rounds.supervision import Targets
from rmas_jax.runs.benchmarks import find_answering
from rmas_jax.runs.learned_data import encode_outer
from rmas_jax.runs.resolve import Resolved
from rmas_jax.runs.resources import load_run_team
from rmas_jax.sharding import batch_shards
from rmas_jax.team import Team
from rmas_jax.team_texts import TeamTexts, checked_topology
from rmas_jax.topology import Topology
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.outer.loop import phase_batches
from rmas_jax.training.outer.validation import validation_rows
from rmas_jax.training.rollouts import even_batches
from rmas_jax.training.tuning.loop import encode_answers


@dataclasses.dataclass(frozen=True)
class Widths:
    """Tokens of prompts and texts, where these are not at hand."""

    prompt: int = 512  # before the slots, and read once
    body: int = 64  # in every round, besides the slots
    text: int = 512  # of training


@dataclasses.dataclass(frozen=True, eq=False)
class PhaseInput:
    """What a phase of the outer loop reads."""

    config: PhaseConfig
    batch: TrainingData  # the longest
    validation: TrainingData
    batches: Batches | None = None  # all of them, where the data are at hand


@dataclasses.dataclass(frozen=True, eq=False)
class RunInputs:
    """What a run's programs read."""

    config: RunConfig
    team: Team  # abstract
    phases: tuple[PhaseInput, ...]
    tuning: tuple[tuple[TuningConfig, TrainingData], ...]  # with the longest batch
    prompts: Mapping[str, StagePrompt]  # of a batch of questions to evaluate
    answering: Answering


def inputs_of_data(resolved: Resolved) -> RunInputs:
    """The longest batches of a run's data."""
    config, team = resolved.config, resolved.team
    phases = []
    if data := encode_outer(resolved):
        for phase in config.outer.phases:
            found = phase_batches(team, phase, data[0], key=jax.random.key(config.seed))
            rows = validation_rows(phase)
            validated = even_batches(data[1], batch_size=rows, shards=batch_shards(team.mesh))
            longest = max((batch for batch, _ in validated), key=_elements)
            phases.append(PhaseInput(phase, found.longest(), longest, found))
    tuning = []
    if config.tuning:
        answers = encode_answers(team, resolved.train)
        for entry in with_budgets(config.tuning, config.outer):
            size: Any = entry.batch_size  # which `with_budgets` fills in
            found = Batches(answers, batch_size=size, key=jax.random.key(config.seed))
            tuning.append((entry, found.longest()))
    size = config.evaluation.batch_size
    prompts = max(
        (
            _first_prompts(team, benchmark, split, size)
            for benchmark in resolved.benchmarks
            for split in benchmark.splits
        ),
        key=_elements,
    )
    answering = max((x.answering for x in resolved.benchmarks), key=lambda x: x.max_tokens)
    return RunInputs(config, team, tuple(phases), tuple(tuning), prompts, answering)


def _first_prompts(
    team: Team, benchmark: LoadedBenchmark, split: str, size: int
) -> dict[str, StagePrompt]:
    """Prompts of the first batch of a split, which has the longest questions."""
    items = benchmark.splits[split]
    rows = benchmark.batches(split, size)[0].rows
    return team.encode(
        [items[row].inputs for row in rows],
        templates=benchmark.prompts,
        block_width=declared_width,
    )


def inputs_of_widths(config: RunConfig, mesh: Mesh, widths: Widths) -> RunInputs:
    """Batches of assumed widths; of the agents, only `config.json` is read.

    Raises:
      ConfigError, TopologyError, CheckpointError, UnsupportedModelError: the configuration or that
        of an agent is unusable.
    """
    config, _, benchmarks = with_defaults(config)
    topology = checked_topology(config.system)
    # Nothing is encoded: a member needs neither a tokenizer nor a template.
    nothing = dict.fromkeys(topology.order, cast(Any, None))
    texts = TeamTexts(topology, nothing, nothing, dict.fromkeys(topology.order, (0,)))
    team = load_run_team(config, texts, mesh=mesh, is_abstract=True)
    steps, rounds = config.system.latent_steps, config.system.rounds
    phases = []
    for phase in config.outer.phases:
        training, validation = (
            _training_data(topology, widths, n, steps=steps, rounds=max(rounds, phase.rounds))
            for n in (phase.batch_size, validation_rows(phase))
        )
        phases.append(PhaseInput(phase, training, validation))
    role = topology.answerer
    tuning = []
    for entry in with_budgets(config.tuning, config.outer):
        rows: Any = entry.batch_size  # which `with_budgets` fills in
        prompts = {role: _prompt(topology, role, widths, rows, steps=0)}
        targets = {role: _targets(rows, 1, widths.text)}
        tuning.append((entry, TrainingData(prompts=prompts, targets=targets)))
    rows = config.evaluation.batch_size
    return RunInputs(
        config,
        team,
        tuple(phases),
        tuple(tuning),
        {role: _prompt(topology, role, widths, rows, steps=steps) for role in topology.order},
        max(
            (find_answering(x, None, config.evaluation) for x in benchmarks),
            key=lambda x: x.max_tokens,
        ),
    )


def _training_data(
    topology: Topology, widths: Widths, rows: int, *, steps: int, rounds: int
) -> TrainingData:
    return TrainingData(
        prompts={
            role: _prompt(topology, role, widths, rows, steps=steps) for role in topology.order
        },
        targets={role: _targets(rows, rounds, max(steps, widths.text)) for role in topology.order},
    )


def _prompt(topology: Topology, role: str, widths: Widths, rows: int, *, steps: int) -> StagePrompt:
    """A prompt with its slots before the last tokens: [prefix | slots | body]."""
    senders = topology.senders(role)
    slots = steps * len(senders)
    body = (rows, 2, slots + widths.body)
    return StagePrompt(
        prefix_ids=jax.ShapeDtypeStruct((rows, widths.prompt), np.int32),
        prefix_valid=jax.ShapeDtypeStruct((rows, widths.prompt), bool),
        body_ids=jax.ShapeDtypeStruct(body, np.int32),
        body_valid=jax.ShapeDtypeStruct(body, bool),
        slot_index=(*range(slots), *[-1] * widths.body),
        senders=senders,
    )


def _targets(rows: int, rounds: int, width: int) -> Targets:
    shape = rows, rounds, width
    return Targets(
        ids=jax.ShapeDtypeStruct(shape, np.int32), valid=jax.ShapeDtypeStruct(shape, bool)
    )


def _elements(batch: Any) -> int:
    return sum(array.size for array in jax.tree.leaves(batch))
