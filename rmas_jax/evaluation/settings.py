"""The evaluation section of a configuration, checked against the registered tables."""

from __future__ import annotations

import dataclasses

from rmas_jax.config import BenchmarkConfig, RunConfig
from rmas_jax.evaluation.benchmarks import find_benchmarks
from rmas_jax.evaluation.graders import find_grader
from rmas_jax.evaluation.methods import chosen_methods


def with_defaults(
    config: RunConfig,
) -> tuple[RunConfig, tuple[str, ...], tuple[BenchmarkConfig, ...]]:
    """The configuration with the defaults of `evaluation` filled in, its methods and its
    benchmarks.

    Raises:
      ConfigError: unknown method, benchmark or grader, or a method without its model.
    """
    benchmarks = find_benchmarks(config)
    if config.data.grader is not None:
        find_grader(config.data.grader, where="data.grader")
    methods = chosen_methods(
        config.evaluation.methods,
        loop_lm=config.evaluation.loop_lm,
        tuned=[entry.name for entry in config.tuning],
    )
    evaluation = dataclasses.replace(config.evaluation, methods=methods)
    return dataclasses.replace(config, evaluation=evaluation), methods, benchmarks
