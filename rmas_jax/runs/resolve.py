"""Resolves a run: reads and checks all its inputs before it writes."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from rmas_jax.agents.member import Member
from rmas_jax.config import ConfigError, RunConfig, trainings
from rmas_jax.data import BadRow, Example
from rmas_jax.data.loading import Dataset, load_dataset
from rmas_jax.evaluation.audit_protocol import protocol
from rmas_jax.evaluation.driver import LoadedBenchmark
from rmas_jax.evaluation.loop_lm import load_loop_lm
from rmas_jax.evaluation.methods import LOOP_LM
from rmas_jax.evaluation.settings import with_defaults
from rmas_jax.host.processes import broadcast_from_first, first_then_others, is_first, on_all
from rmas_jax.links import Links
from rmas_jax.prompts import check_columns, check_unasked
from rmas_jax.run_files import DATA, RunFiles
from rmas_jax.runs.benchmarks import load_benchmarks, named_rows
from rmas_jax.runs.folder import config_tree, dated, files_of, with_date
from rmas_jax.runs.identity import agent_sources, contents, text_digest, weights_digest
from rmas_jax.runs.resources import (
    load_run_team,
    mesh_of,
    policies_of,
    use_compilation_cache,
    with_mesh,
)
from rmas_jax.team import Team, load_links_for
from rmas_jax.team_texts import TeamTexts, load_team_texts, prompt_columns
from rmas_jax.topology import Topology
from rmas_jax.training.data.encoding import EncodedItems, encode_examples
from rmas_jax.training.outer.loop import phase_batches
from rmas_jax.training.tuning.loop import abstract_adapter

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """All inputs of a run, read and checked once."""

    config: RunConfig  # with the date of its first start, and the evaluation in full
    files: RunFiles
    team: Team
    agents: dict[str, dict[str, str | None]]  # of `agent_sources`
    given_links: Links | None  # to start from
    train: Sequence[Example]  # read from the disk when they are used
    validation: list[Example]  # the used part
    methods: tuple[str, ...]  # to evaluate
    benchmarks: list[LoadedBenchmark]  # to evaluate them on
    bad_rows: Sequence[BadRow]  # left out
    contents: dict[str, Any]  # digests of all inputs, beside the configuration
    declared: dict[str, Any] | None = None  # the protocol of the audit

    @functools.cached_property
    def training_data(self) -> EncodedItems:
        """The training items, encoded; for checks and for the outer loop."""
        return encode_examples(self.team, self.train)


def resolve(
    config: RunConfig,
    *,
    mesh: Mesh | None = None,
    is_abstract: bool = False,
    validation_items: int | None = None,
) -> Resolved:
    """Reads and checks all inputs of a run; writes only prepared data, which runs share.

    Args:
      config: of the run.
      mesh: devices of the team; None: those that `runtime` names.
      is_abstract: whether the team has shapes in place of arrays; no weight is then loaded.
      validation_items: of the validation split, to read; None: as many as the run uses.

    Raises:
      InputError: an input cannot be used; raised before any weight is read, if possible.
    """
    if config.runtime.compilation_cache:
        use_compilation_cache()
    config, methods, chosen = on_all(lambda: with_defaults(with_mesh(config)))
    config = with_date(config, broadcast_from_first(lambda: dated(config).system.date))
    files = files_of(config)
    texts = on_all(lambda: load_team_texts(config.system))
    first_then_others(lambda: make_output_dir(files))
    columns = on_all(lambda: prompt_columns(config.system, texts))
    dataset = prepared(files, lambda: find_data(config, texts.topology, files.data, columns))
    benchmarks = prepared(
        files,
        lambda: load_benchmarks(config, methods, chosen, texts, dataset, files.data, columns),
    )
    loaded = {"mesh": mesh_of(config) if mesh is None else mesh, "is_abstract": is_abstract}
    held_out = used_validation(config) if validation_items is None else validation_items
    return on_all(
        lambda: _read(config, files, texts, dataset, held_out, methods, benchmarks, loaded)
    )


def used_validation(config: RunConfig) -> int:
    """Validation items that a run reads: for the loss of its trainings and for gradient norms."""
    outer, is_trained = config.outer, config.outer.phases or config.tuning
    return max(
        outer.validation_size if is_trained else 0,
        config.evaluation.gradient_batch_size if config.system.latent_steps else 0,
    )


def prepared(files: RunFiles, load: Callable[[], T]) -> T:
    """Calls in every process, in the first one first, which prepares data for all runs."""
    mirror = files.shared_mirror(DATA)

    def work() -> T:
        if mirror is not None:
            mirror.pull()
        found = load()
        if mirror is not None and is_first():
            mirror.push()
        return found

    return first_then_others(work)


def _read(
    config: RunConfig,
    files: RunFiles,
    texts: TeamTexts,
    dataset: Dataset,
    held_out: int,
    methods: tuple[str, ...],
    benchmarks: list[LoadedBenchmark],
    loaded: Mapping[str, Any],
) -> Resolved:
    train = dataset.read("train")[: config.data.train_size]
    for where, training in trainings(config):
        if len(train) < training.batch_size:
            raise ConfigError(
                f"{where}.batch_size={training.batch_size}: there are {len(train)} items to "
                "train on (data.train_size)"
            )
    validation = list(dataset.read("validation")[:held_out]) if held_out else []
    check_unasked(texts.templates, config.data, source=config.system.prompts)
    for split, rows in (("train", train), ("validation", validation)):
        named = named_rows(rows, f"{config.data.dataset}: {split}")
        check_columns(texts.templates, named, source=config.system.prompts)
    loop_lm = find_loop_lm(config, texts, methods, benchmarks, **loaded)
    team = dataclasses.replace(load_run_team(config, texts, **loaded), loop_lm=loop_lm)
    given = None if config.system.links is None else load_links_for(team, config.system)
    agents = agent_sources(config)
    inputs = {
        "weights": weights_digest(agents, given),
        "data": dataset.version,
        **contents(config, texts),
    }
    declared = declare_audit(config, benchmarks, texts.topology, inputs)
    # Named in the folder's identity, so that a start that declares another audit is refused.
    kept = None if declared is None else {k: v for k, v in declared.items() if k != "conditions"}
    resolved = Resolved(
        config=config,
        files=files,
        team=team,
        agents=agents,
        given_links=given,
        train=train,
        validation=validation,
        methods=methods,
        benchmarks=benchmarks,
        bad_rows=dataset.bad_rows,
        contents={**inputs, "audit": kept},
        declared=declared,
    )
    for entry in config.tuning:
        abstract_adapter(team, entry)  # checks its matrices
    for phase in config.outer.phases:
        if phase.latents == "teacher_forced":  # whether enough texts are long enough
            phase_batches(team, phase, resolved.training_data, key=jax.random.key(config.seed))
    return resolved


def declare_audit(
    config: RunConfig,
    benchmarks: Sequence[LoadedBenchmark],
    topology: Topology,
    inputs: Mapping[str, Any],
) -> dict[str, Any] | None:
    """The protocol of a run's audit; None without one. `inputs` are digests of the run's inputs."""
    if (chosen := config.evaluation.audit) is None:
        return None
    tree = config_tree(config)
    training = {name: tree[name] for name in ("seed", "system", "data", "inner", "outer")}
    return protocol(
        chosen,
        benchmarks,
        topology,
        rounds=chosen.rounds or config.system.rounds,
        seeds=config.measured_seeds,
        links_from=text_digest([training, inputs]),
    )


def find_loop_lm(
    config: RunConfig,
    texts: TeamTexts,
    methods: Sequence[str],
    benchmarks: Sequence[LoadedBenchmark],
    **loaded: Any,
) -> Member | None:
    """The looped language model, in the answerer's role; None where no method uses it.

    `loaded` are `mesh` and `is_abstract`, as in `load_loop_lm`.
    """
    source, runtime, role = config.evaluation.loop_lm, config.runtime, texts.topology.answerer
    if source is None or LOOP_LM not in methods:
        return None
    return load_loop_lm(
        source,
        role,
        [texts.templates[role], *(benchmark.prompts[role] for benchmark in benchmarks)],
        date=config.system.date,
        dtype=runtime.dtype,
        weights=runtime.weights,
        policies=policies_of(config),
        **loaded,
    )


def make_output_dir(files: RunFiles) -> None:
    """Makes the output folder, or its copy."""
    path = files.root.parent
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={path}: cannot be made: {error.strerror}") from None


def find_data(
    config: RunConfig, topology: Topology, data_dir: Path, columns: Sequence[str]
) -> Dataset:
    """The data of a run, kept in `data_dir`, with enough texts for its training.

    `columns` are those of prompts.
    """
    if config.system.task_type is not None and config.data.dataset == "relay":
        raise ConfigError(
            "data.dataset=relay: its puzzles are no problems of system.task_type="
            f"{config.system.task_type}; name a published set or a file of problems"
        )
    roles = topology.order
    rounds = max(config.system.rounds, *(phase.rounds for phase in config.outer.phases), 1)
    dataset = load_dataset(
        config.data, roles=roles, rounds=rounds, data_dir=data_dir, prompted=columns
    )
    for i, phase in enumerate(config.outer.phases):
        if phase.rounds > 1 and not topology.feedback_edges:
            raise ConfigError(
                f"outer.phases.{i}.rounds={phase.rounds}: no edge of the {topology.name} topology "
                "leads back, so all rounds would be alike; use 1 round"
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
