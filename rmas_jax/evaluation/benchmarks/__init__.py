"""Benchmarks: a YAML file each (see `config.BenchmarkConfig`). To add one, add a file here."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from importlib import resources
from pathlib import Path

from rmas_jax.config import (
    DEFAULT_ANSWERS,
    BenchmarkChoice,
    BenchmarkConfig,
    ConfigError,
    DataConfig,
    RunConfig,
    load_benchmark_config,
)
from rmas_jax.data.published import ORGANISATION
from rmas_jax.evaluation.graders import Grader, default_grader, find_grader
from rmas_jax.host.errors import shown
from rmas_jax.host.inputs import local_input

FOLDER = Path(str(resources.files(__package__)))
log = logging.getLogger(__name__)
OWN = "data"  # in `evaluation.benchmarks`: the questions of the run's own data


@functools.cache
def shipped() -> dict[str, BenchmarkConfig]:
    """The shipped benchmarks, by name."""
    found = [load_benchmark_config(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return {benchmark.name: benchmark for benchmark in found}


def find_benchmarks(config: RunConfig) -> tuple[BenchmarkConfig, ...]:
    """The benchmarks of a run, with their splits and the defaults of `sampling` filled in.

    Raises:
      ConfigError: a benchmark is unknown or its file unusable; two have one name; settings of
        answers contradict each other.
    """
    found: dict[str, BenchmarkConfig] = {}
    for i, choice in enumerate(config.evaluation.benchmarks or (BenchmarkChoice(name=OWN),)):
        where = f"evaluation.benchmarks.{i}"
        benchmark = (
            _own(config)
            if choice.name == OWN
            else find_benchmark(choice.name, where=f"{where}.name")
        )
        if benchmark.name in found:
            raise ConfigError(
                f"{where}.name must be unique, got {shown(benchmark.name)} again; name each "
                "benchmark once, with all its splits"
            )
        sampling = config.evaluation.sampling.over(benchmark.sampling).over(DEFAULT_ANSWERS)
        for field, message in sampling.conflicts():
            raise ConfigError(f"evaluation.sampling.{field} {message} ({benchmark.name})")
        benchmark = dataclasses.replace(
            benchmark,
            splits=choice.splits or benchmark.splits,
            sampling=sampling,
            metric=choice.metric or benchmark.metric,
            checksum={**(benchmark.checksum or {}), **(choice.checksum or {})},
        )
        for field, message in benchmark.conflicts():
            raise ConfigError(f"{where}.{field} {message} ({benchmark.name})")
        found[benchmark.name] = benchmark
    return tuple(found.values())


def grader_of(benchmark: BenchmarkConfig) -> Grader:
    """The grader of a benchmark, or the default of its task type.

    Warns where it compares the texts of programs.

    Raises:
      ConfigError: see `find_grader`.
    """
    name = benchmark.data.grader or default_grader(benchmark.data.dataset, benchmark.task_type)
    if benchmark.task_type == "code" and name == "text":
        log.warning(
            "%s: programs are graded as texts: a right one that is not the gold answer, but for "
            "case and spaces, counts as wrong (data.grader: code runs rows with tests)",
            benchmark.name,
        )
    return find_grader(name, where=f"benchmark {benchmark.name}: data.grader")


def _own(config: RunConfig) -> BenchmarkConfig:
    """The benchmark of the training data: a listed one of that data set, or one without a file.

    What the definition says of its own files, their number of items and checksum, is left out.
    """
    name = own_name(config.data)
    listed = {b.data.dataset: b for b in shipped().values()}.get(name)
    benchmark = listed or BenchmarkConfig(name=name, data=config.data)
    grader = config.data.grader or benchmark.data.grader
    return dataclasses.replace(
        benchmark,
        data=dataclasses.replace(config.data, grader=grader),
        task_type=config.system.task_type,
        items=None,
        checksum=None,
    )


def own_name(data: DataConfig) -> str:
    """The name of the training data's questions in results."""
    return Path(data.dataset.removeprefix(f"{ORGANISATION}/")).name or data.dataset


def find_benchmark(name: str, *, where: str) -> BenchmarkConfig:
    """A shipped benchmark, or that of a file; `where` is the setting that names it.

    Raises:
      ConfigError: there is none, or its file is unusable.
    """
    if name in shipped():
        return shipped()[name]
    if not os.path.lexists(local_input(name)):
        raise ConfigError(
            f"{where} must be one of {', '.join(shipped())}, the path of a YAML file, or in a run "
            f"{OWN}, got {shown(name, 300)}"
        )
    return load_benchmark_config(name)
