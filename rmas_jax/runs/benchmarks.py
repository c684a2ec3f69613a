"""The benchmarks of a run: splits, prompts and ways of answering, read and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.config import BenchmarkConfig, ConfigError, EvaluationConfig, RunConfig
from rmas_jax.data import Example
from rmas_jax.data.loading import Dataset
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.audit_protocol import check_audit
from rmas_jax.evaluation.benchmarks import grader_of
from rmas_jax.evaluation.benchmarks.loading import check_data, load_benchmark
from rmas_jax.evaluation.driver import LoadedBenchmark, check_items
from rmas_jax.evaluation.graders import check_golds, with_legacy
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import RolePrompt, check_columns, check_unasked
from rmas_jax.runs.resources import build_toolbox
from rmas_jax.team_texts import (
    TeamTexts,
    check_templates,
    load_method_templates,
    load_templates,
)
from rmas_jax.tools import Toolbox


def load_benchmarks(
    config: RunConfig,
    methods: Sequence[str],
    benchmarks: Sequence[BenchmarkConfig],
    texts: TeamTexts,
    dataset: Dataset,
    data_dir: Path,
    columns: Sequence[str],
) -> list[LoadedBenchmark]:
    """Reads and checks the benchmarks of a run.

    `dataset` is its training data; `columns` are those of prompts.

    Raises:
      ConfigError: a benchmark cannot be measured by these methods, or by this team.
    """
    chosen = config.evaluation
    toolbox = build_toolbox(python=chosen.python, search=chosen.search)
    loaded = []
    for benchmark in benchmarks:
        data = data_of(benchmark, config, dataset, data_dir, columns)
        ready = load_one(benchmark, config, methods, texts, data, toolbox)
        check_items(ready, methods=methods, batch_size=chosen.batch_size)
        loaded.append(ready)
    if chosen.nearest_tokens and jax.process_count() > 1:
        raise ConfigError(
            f"evaluation.nearest_tokens must be 0 in several processes, got {chosen.nearest_tokens}"
        )
    if chosen.audit is not None:
        check_audit(chosen.audit.messages, loaded, latent_steps=config.system.latent_steps)
    return loaded


def data_of(
    benchmark: BenchmarkConfig,
    config: RunConfig,
    dataset: Dataset,
    data_dir: Path,
    columns: Sequence[str],
) -> Dataset:
    """The items of a benchmark: those of training data, if they differ in the grader at most."""
    if benchmark.data != dataclasses.replace(config.data, grader=benchmark.data.grader):
        return load_benchmark(benchmark, data_dir, columns)
    check_data(benchmark, dataset, columns)
    return dataset


def load_one(
    benchmark: BenchmarkConfig,
    config: RunConfig,
    methods: Sequence[str],
    texts: TeamTexts,
    data: Dataset,
    toolbox: Toolbox | None,
) -> LoadedBenchmark:
    """A benchmark on its data, with prompts that have what they need of every item."""
    chosen, system, source = config.evaluation, config.system, config.system.prompts
    grader, task_type = grader_of(benchmark), benchmark.task_type
    version = grader.name
    if chosen.legacy:
        grader = with_legacy(grader, task_type)
    splits = read_splits(data, benchmark.splits, name=benchmark.name)
    check_golds(grader, splits)
    prompts = load_templates(system, texts, task_type)
    method_prompts = load_method_templates(system, texts.topology, prompts, task_type)
    check_unasked(prompts, benchmark.data, source=source)
    for split, items in splits.items():
        check_columns(prompts, named_rows(items, f"{benchmark.name}: {split}"), source=source)
    for schedule in {METHODS[name].schedule for name in methods} & set(method_prompts):
        check_templates(system, texts, method_prompts[schedule])
        check_unasked(method_prompts[schedule], benchmark.data, source=source)
        check_same_columns(prompts, method_prompts[schedule], schedule, source=source)
    return LoadedBenchmark(
        name=benchmark.name,
        version=version,
        grader=grader,
        splits=splits,
        prompts=prompts,
        answering=find_answering(benchmark, toolbox, chosen),
        description=benchmark.description,
        metric=benchmark.metric,
        method_prompts=method_prompts,
        task_type=task_type,
    )


def read_splits(dataset: Dataset, names: Sequence[str], *, name: str) -> dict[str, list[Example]]:
    """Examples to evaluate, by split or part of one; parts may overlap.

    Raises:
      ConfigError: a split or part does not exist, or has two names.
    """
    splits: dict[str, list[Example]] = {}
    read: dict[tuple[str, ...], str] = {}  # split and its ids -> name
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


def named_rows(examples: Sequence[Example], where: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Examples with their names, for `check_columns`."""
    return ((f"{where}: row {example.id}", example.inputs) for example in examples)


def check_same_columns(
    own: Mapping[str, RolePrompt], method: Mapping[str, RolePrompt], name: str, *, source: str
) -> None:
    """Checks that an agent reads as much of the data in a text method as in its role.

    Raises:
      ConfigError: names the method, the role and the column.
    """
    for role, prompt in method.items():
        if lacking := [name for name in own[role].columns if name not in prompt.columns]:
            raise ConfigError(
                f"evaluation.methods: the prompt of {role} in {name} must have {{{lacking[0]}}}, "
                f"as in its role: write it in the section methods of {source}, or leave {name} out"
            )


def find_answering(
    benchmark: BenchmarkConfig, toolbox: Toolbox | None, evaluation: EvaluationConfig
) -> Answering:
    """Settings of measured answers to a benchmark of `find_benchmarks`."""
    chosen: Any = benchmark.sampling  # without open fields
    shortest = evaluation.refill_from
    return Answering(
        max_tokens=chosen.max_new_tokens,
        sampling=SamplingConfig(
            temperature=chosen.temperature, top_k=chosen.top_k, top_p=chosen.top_p
        ),
        rollouts=chosen.rollouts,
        toolbox=toolbox,
        answer_retry=answer_retry_of(benchmark.task_type) if evaluation.answer_retry else None,
        refills=shortest is not None and chosen.max_new_tokens >= shortest,
        nearest_tokens=evaluation.nearest_tokens,
    )
