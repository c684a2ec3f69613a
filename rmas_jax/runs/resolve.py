"""What a run reads before it writes anything, and what its loops read."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.config import BenchmarkConfig, ConfigError, RunConfig
from rmas_jax.data import Dataset, Example, load_dataset
from rmas_jax.evaluation.benchmarks import find_benchmarks, grader_of
from rmas_jax.evaluation.driver import LoadedBenchmark, in_order
from rmas_jax.evaluation.entrants import Answering
from rmas_jax.evaluation.graders import check_golds
from rmas_jax.evaluation.methods import chosen_methods
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import load_prompts
from rmas_jax.runs.identity import agent_sources
from rmas_jax.runs.resources import build_toolbox, load_run_team
from rmas_jax.team import Team, check_prompts, checked_topology, load_links_for
from rmas_jax.tools import Toolbox
from rmas_jax.training.data.batches import (
    Dialogues,
    TrainingData,
    encode_dialogues,
    encode_examples,
)
from rmas_jax.training.outer.loop import phase_batches

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a run reads before it writes anything."""

    benchmarks: list[LoadedBenchmark]  # what is evaluated
    team: Team
    given: Any  # links to start from, or None
    agents: dict[str, dict[str, str | None]]  # of `agent_sources`


def load_benchmarks(config: RunConfig, dataset: Dataset) -> list[LoadedBenchmark]:
    """Reads and checks what a run evaluates; `dataset` is what it trains on."""
    system, chosen = config.system, config.evaluation
    edges = checked_topology(system).edges
    toolbox = build_toolbox(python=chosen.python, search=chosen.search)
    methods, loaded = chosen_methods(chosen.methods), []
    for benchmark in find_benchmarks(config):
        grader, task_type = grader_of(benchmark), benchmark.task_type
        if task_type != system.task_type:
            check_prompts(dataclasses.replace(system, task_type=task_type))
        data, grading = dataset, benchmark.data.grader
        if benchmark.data != dataclasses.replace(config.data, grader=grading):
            folder = Path(config.output_dir) / "data"
            data = load_dataset(benchmark.data, roles=(), rounds=1, data_dir=folder)
            if data.bad_rows:
                log.warning(
                    "%s: %d bad rows left out, the first: %s, line %d: %s",
                    benchmark.name,
                    len(data.bad_rows),
                    *data.bad_rows[0],
                )
        splits = read_splits(data, benchmark.splits, name=benchmark.name)
        check_golds(grader, splits)
        answered = (grader.name, task_type, benchmark.sampling, benchmark.data.columns)
        version = f"{answered} {data.version}".encode()
        ready = LoadedBenchmark(
            benchmark.name,
            hashlib.sha256(version).hexdigest()[:16],
            grader,
            splits,
            load_prompts(system.prompts, edges, task_type),
            find_answering(benchmark, toolbox, has_retry=chosen.answer_retry),
        )
        in_order(ready, methods=methods, batch_size=chosen.batch_size)  # checks it early
        loaded.append(ready)
    return loaded


def read_inputs(config: RunConfig, dataset: Dataset, benchmarks: list[LoadedBenchmark]) -> Inputs:
    """Reads and checks all that a run needs beside its data."""
    team = load_run_team(config)
    given = None if config.system.links is None else load_links_for(team, config.system)
    if forced := [phase for phase in config.outer.phases if phase.latents == "teacher_forced"]:
        data = encode(team, dataset, dataset.load("train")[: config.data.train_size])
        for phase in forced:  # whether enough texts are long enough
            phase_batches(team, phase, data, key=jax.random.key(config.seed))
    return Inputs(benchmarks, team, given, agent_sources(config))


def read_splits(dataset: Dataset, names: Sequence[str], *, name: str) -> dict[str, list[Example]]:
    """What is evaluated, by split or part of one; parts may overlap.

    Raises:
      ConfigError: there is no such split or part, or the same one under two names.
    """
    splits: dict[str, list[Example]] = {}
    read: dict[tuple[str, ...], str] = {}  # split and its ids -> how it is called
    for split in names:
        try:
            splits[split] = dataset.load(split)
        except ValueError as error:
            raise ConfigError(f"evaluation.benchmarks: {name}: splits: {error}") from None
        items = (split.partition("[")[0], *(example.id for example in splits[split]))
        if (other := read.setdefault(items, split)) != split and splits[split]:
            raise ConfigError(
                f"evaluation.benchmarks: {name}: splits: {other!r} and {split!r} are the same "
                "items, which would be measured twice; name one of them"
            )
    return splits


def make_output_dir(path: str) -> None:
    """Makes the folder that everything is written to."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={path}: cannot be made: {error.strerror}") from None


def find_data(config: RunConfig) -> Dataset:
    """The data of a run, whose texts suffice for what it trains."""
    if config.system.task_type is not None and config.data.dataset == "relay":
        raise ConfigError(
            "data.dataset=relay: its puzzles are no problems of system.task_type="
            f"{config.system.task_type}; name a published set or a file of problems"
        )
    topology = checked_topology(config.system)
    roles = topology.order
    rounds = max(config.system.rounds, *(phase.rounds for phase in config.outer.phases), 1)
    data_dir = Path(config.output_dir) / "data"
    dataset = load_dataset(config.data, roles=roles, rounds=rounds, data_dir=data_dir)
    found = len(dataset.load("train")[: config.data.train_size])
    for i, phase in enumerate(config.outer.phases):
        if phase.rounds > 1 and not topology.feedback_edges:
            raise ConfigError(
                f"outer.phases.{i}.rounds={phase.rounds}: no edge of the {topology.name} topology "
                "leads back, so all rounds would be alike; use 1 round"
            )
        if found < phase.batch_size:
            raise ConfigError(
                f"outer.phases.{i}.batch_size={phase.batch_size}: there are {found} items to "
                "train on (data.train_size)"
            )
    if lacking := [role for role in roles if role not in dataset.text_roles]:
        for phase in config.outer.phases:
            if phase.latents == "teacher_forced":
                raise ConfigError(
                    f"outer.phases: {phase.name} is teacher_forced, which needs texts of every "
                    f"role; the data has none of {', '.join(lacking)} (on_policy needs none)"
                )
        log.info(
            "no texts of %s: their inner links learn from the answers "
            "(rmas role-texts makes texts)",
            ", ".join(lacking),
        )
    return dataset


def find_answering(
    benchmark: BenchmarkConfig, toolbox: Toolbox | None, *, has_retry: bool
) -> Answering:
    """How answers to a benchmark of `find_benchmarks` are written while they are measured."""
    chosen = benchmark.sampling
    return Answering(
        max_tokens=chosen.max_new_tokens,
        sampling=SamplingConfig(
            temperature=chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p
        ),
        rollouts=chosen.rollouts,
        toolbox=toolbox,
        answer_retry=answer_retry_of(benchmark.task_type) if has_retry else None,
    )


def encode(team: Team, dataset: Dataset, items: Sequence[Any]) -> TrainingData:
    """Items of the data as a team's agents read and write them."""
    return encode_examples(
        items,
        team.members,
        slot_width=team.system.latent_steps,
    )


def encode_inner(
    config: RunConfig, team: Team, dataset: Dataset
) -> tuple[dict[str, Dialogues], TrainingData | None]:
    """What the inner loop reads: nothing without steps, and prompts with slots in later passes."""
    if config.inner.steps == 0:
        return {}, None
    items = dataset.load("train")[: config.data.train_size][: config.inner.items]
    dialogues = {
        role: encode_dialogues(
            items,
            team.members[role],
            topology=team.system.topology,
            rounds=config.system.rounds,
        )
        for role in team.system.topology.order
    }
    return dialogues, encode(team, dataset, items) if config.inner.repeats > 1 else None


def encode_outer(
    config: RunConfig, team: Team, dataset: Dataset
) -> tuple[TrainingData, TrainingData] | None:
    """What the outer loop trains on and validates on; None where it has no phases."""
    if not config.outer.phases:
        return None
    items = dataset.load("train")[: config.data.train_size]
    held_out = dataset.load("validation")[: config.outer.validation_size]
    return encode(team, dataset, items), encode(team, dataset, held_out)
