"""What a run reads, before it writes anything; and what its loops read of that."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.data import BadRow, Dataset, Row, load_dataset
from rmas_jax.evaluation.driver import in_order
from rmas_jax.evaluation.entrants import Answering
from rmas_jax.evaluation.grading import Grader, check_golds, find_grader
from rmas_jax.host.processes import broadcast_from_first, first_then_others, on_all
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.folder import dated, with_date
from rmas_jax.runs.identity import agent_sources, contents, weights_digest
from rmas_jax.runs.resources import build_toolbox, load_run_team, use_compilation_cache
from rmas_jax.team import Team, TeamTexts, load_links_for, load_team_texts
from rmas_jax.topology import Topology
from rmas_jax.training.data.batches import (
    Dialogues,
    TrainingData,
    encode_dialogues,
    encode_examples,
)
from rmas_jax.training.outer.loop import phase_batches

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """All that a run reads, read and checked once."""

    config: RunConfig  # with the date of its first start
    files: RunFiles
    team: Team
    agents: dict[str, dict[str, str | None]]  # of `agent_sources`
    given_links: Any  # to start from, or None
    train: list[Row]
    validation: list[Row]  # as many as are used
    splits: dict[str, list[Row]]  # what is evaluated
    text_fields: Mapping[str, str]  # role -> field of a row with its texts; not every role
    bad_rows: Sequence[BadRow]  # left out
    grade: Grader
    answering: Answering
    contents: dict[str, Any]  # digests of all that was read, beside the configuration


def resolve(config: RunConfig) -> Resolved:
    """Reads and checks all that a run needs; writes prepared data alone, which runs share.

    Raises:
      InputError: one of them cannot be used; before any weight is read where that shows before.
    """
    if config.runtime.compilation_cache:
        use_compilation_cache()
    config = with_date(config, broadcast_from_first(lambda: dated(config).system.date))
    files = RunFiles(Path(config.output_dir) / config.name)
    texts = on_all(lambda: load_team_texts(config.system))
    first_then_others(lambda: make_output_dir(config.output_dir))
    dataset = first_then_others(  # the first process prepares it
        lambda: find_data(config, texts.topology, files.data)
    )
    return on_all(lambda: _read(config, files, texts, dataset))


def _read(config: RunConfig, files: RunFiles, texts: TeamTexts, dataset: Dataset) -> Resolved:
    chosen = config.evaluation
    train = dataset.load("train")[: config.data.train_size]
    for i, phase in enumerate(config.outer.phases):
        if len(train) < phase.batch_size:
            raise ConfigError(
                f"outer.phases.{i}.batch_size={phase.batch_size}: there are {len(train)} items to "
                "train on (data.train_size)"
            )
    grade = find_grader(config.data, config.system.task_type)
    answering = find_answering(config)
    splits = read_splits(dataset, chosen.splits)
    check_golds(grade, splits)
    in_order(splits, methods=chosen.methods, batch_size=chosen.batch_size)
    held_out = max(
        config.outer.validation_size if config.outer.phases else 0,
        chosen.gradient_batch_size if config.system.latent_steps else 0,
    )
    validation = dataset.load("validation")[:held_out] if held_out else []
    team = load_run_team(config, texts)
    given = None if config.system.links is None else load_links_for(team, config.system)
    if forced := [phase for phase in config.outer.phases if phase.latents == "teacher_forced"]:
        data = encode(team, train, dataset.text_fields)
        for phase in forced:  # whether enough texts are long enough
            phase_batches(team, phase, data, key=jax.random.key(config.seed))
    agents = agent_sources(config)
    return Resolved(
        config=config,
        files=files,
        team=team,
        agents=agents,
        given_links=given,
        train=train,
        validation=validation,
        splits=splits,
        text_fields=dataset.text_fields,
        bad_rows=dataset.bad_rows,
        grade=grade,
        answering=answering,
        contents={
            "weights": weights_digest(agents, given),
            "data": dataset.version,
            **contents(config, texts),
        },
    )


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


def find_data(config: RunConfig, topology: Topology, data_dir: Path) -> Dataset:
    """The data of a run, kept in `data_dir`, whose texts suffice for what it trains."""
    if config.system.task_type is not None and config.data.dataset == "relay":
        raise ConfigError(
            "data.dataset=relay: its puzzles are no problems of system.task_type="
            f"{config.system.task_type}; name a published set or a file of problems"
        )
    roles = topology.order
    rounds = max(config.system.rounds, *(phase.rounds for phase in config.outer.phases), 1)
    dataset = load_dataset(config.data, roles=roles, rounds=rounds, data_dir=data_dir)
    for i, phase in enumerate(config.outer.phases):
        if phase.rounds > 1 and not topology.feedback_edges:
            raise ConfigError(
                f"outer.phases.{i}.rounds={phase.rounds}: no edge of the {topology.name} topology "
                "leads back, so all rounds would be alike; use 1 round"
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


def encode(
    team: Team, items: Sequence[Mapping[str, Any]], text_fields: Mapping[str, str]
) -> TrainingData:
    """Items of the data as a team's agents read and write them."""
    return encode_examples(
        items,
        team.tokenizers,
        team.prompts,
        ends={role: ends[0] for role, ends in team.end_tokens.items()},
        text_fields=text_fields,
        slot_width=team.system.latent_steps,
    )


def learned_fields(resolved: Resolved) -> dict[str, str]:
    """What each role learns to write: its own texts or, where there are none, the answerer's."""
    fields, topology = resolved.text_fields, resolved.team.system.topology
    return {role: fields.get(role, fields[topology.answerer]) for role in topology.order}


def encode_inner(resolved: Resolved) -> tuple[dict[str, Dialogues], TrainingData | None]:
    """What the inner loop reads: nothing without steps, and prompts with slots in later passes."""
    config, team = resolved.config, resolved.team
    if config.inner.steps == 0:
        return {}, None
    items = resolved.train[: config.inner.items]
    dialogues = {
        role: encode_dialogues(
            items,
            team.tokenizers[role],
            team.prompts[role],
            topology=team.system.topology,
            role=role,
            end=team.end_tokens[role][0],
            text_fields={**resolved.text_fields, role: field},
            rounds=config.system.rounds,
        )
        for role, field in learned_fields(resolved).items()
    }
    repeated = encode(team, items, resolved.text_fields) if config.inner.repeats > 1 else None
    return dialogues, repeated


def encode_outer(resolved: Resolved) -> tuple[TrainingData, TrainingData] | None:
    """What the outer loop trains on and validates on; None where it has no phases."""
    if not resolved.config.outer.phases:
        return None
    held_out = resolved.validation[: resolved.config.outer.validation_size]
    return (
        encode(resolved.team, resolved.train, resolved.text_fields),
        encode(resolved.team, held_out, resolved.text_fields),
    )
