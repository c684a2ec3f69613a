"""What a run reads before it writes anything, and what its loops read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.data import Dataset, Row, load_dataset
from rmas_jax.evaluation.driver import in_order
from rmas_jax.evaluation.entrants import Answering
from rmas_jax.evaluation.grading import Grader, check_golds, find_grader
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.runs.identity import agent_sources
from rmas_jax.runs.resources import build_toolbox, load_run_team
from rmas_jax.team import Team, checked_topology, load_links_for
from rmas_jax.training.data.encoding import (
    Dialogues,
    TrainingData,
    encode_dialogues,
    encode_examples,
)
from rmas_jax.training.outer.loop import phase_batches

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a run reads before it writes anything."""

    grade: Grader
    answering: Answering
    splits: dict[str, list[Row]]  # what is evaluated
    team: Team
    given: Any  # links to start from, or None
    agents: dict[str, dict[str, str | None]]  # of `agent_sources`


def read_inputs(config: RunConfig, dataset: Dataset) -> Inputs:
    """Reads and checks all that a run needs."""
    grade = find_grader(config.data, config.system.task_type)
    answering = find_answering(config)
    splits = read_splits(dataset, config.evaluation.splits)
    check_golds(grade, splits)
    chosen = config.evaluation
    in_order(splits, methods=chosen.methods, batch_size=chosen.batch_size)
    team = load_run_team(config)
    given = None if config.system.links is None else load_links_for(team, config.system)
    if forced := [phase for phase in config.outer.phases if phase.latents == "teacher_forced"]:
        data = encode(team, dataset, dataset.load("train")[: config.data.train_size])
        for phase in forced:  # whether enough texts are long enough
            phase_batches(team, phase, data, key=jax.random.key(config.seed))
    return Inputs(grade, answering, splits, team, given, agent_sources(config))


def read_splits(dataset: Dataset, names: Sequence[str]) -> dict[str, list[Row]]:
    """What is evaluated, by split or part of one; parts may overlap.

    Raises:
      ConfigError: there is no such split or part, or the same one under two names.
    """
    splits: dict[str, list[Row]] = {}
    read: dict[tuple[str, ...], str] = {}  # split and its ids -> how it is called
    for name in names:
        try:
            splits[name] = dataset.load(name)
        except ValueError as error:
            raise ConfigError(f"evaluation.splits: {error}") from None
        items = (name.partition("[")[0], *(row["id"] for row in splits[name]))
        if (other := read.setdefault(items, name)) != name and splits[name]:
            raise ConfigError(
                f"evaluation.splits: {other!r} and {name!r} are the same items, which would be "
                "measured twice; name one of them"
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
    if lacking := [role for role in roles if role not in dataset.text_fields]:
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


def find_answering(config: RunConfig) -> Answering:
    """How answers are written while they are measured."""
    chosen = config.evaluation
    return Answering(
        max_tokens=chosen.max_new_tokens,
        sampling=SamplingConfig(
            temperature=chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p
        ),
        rollouts=chosen.rollouts,
        toolbox=build_toolbox(python=chosen.python, search=chosen.search),
        answer_retry=answer_retry_of(config.system.task_type) if chosen.answer_retry else None,
    )


def encode(team: Team, dataset: Dataset, items: Sequence[Any]) -> TrainingData:
    """Items of the data as a team's agents read and write them."""
    return encode_examples(
        items,
        team.tokenizers,
        team.prompts,
        ends={role: ends[0] for role, ends in team.end_tokens.items()},
        text_fields=dataset.text_fields,
        slot_width=team.system.latent_steps,
    )


def learned_fields(team: Team, dataset: Dataset) -> dict[str, str]:
    """What each role learns to write: its own texts or, where there are none, the answerer's."""
    fields, topology = dataset.text_fields, team.system.topology
    return {role: fields.get(role, fields[topology.answerer]) for role in topology.order}


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
            team.tokenizers[role],
            team.prompts[role],
            topology=team.system.topology,
            role=role,
            end=team.end_tokens[role][0],
            text_fields={**dataset.text_fields, role: field},
            rounds=config.system.rounds,
        )
        for role, field in learned_fields(team, dataset).items()
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
