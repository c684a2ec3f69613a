"""Runs methods over splits, item by item, and records accuracy and cost.

Measures per item: tokens written by all agents (end tokens count), sequential model steps (a prompt
is read in the step of the first token or thought after it), model FLOPs of useful work (prompts,
thoughts, links, messages and answers of all agents; `models.flops`), and seconds: the wall time of
whole batches over the rows of these batches, host work between agents included. Compile time is
excluded: methods share programs, and the first would be charged for all. Retries and tool calls
compile new text widths during a measurement, so a batch in which anything was compiled runs again
for its time. Tokenisation of questions and prompts, the same for all methods, is excluded too.
Where questions have several answers, accuracy, tokens, steps and FLOPs are those of the first one,
seconds are of all; where the benchmark's metric is `pass_at_k`, it is the share of questions with a
right one.

Counts of first answers: without an answer (`unparsed`), not graded in time (`timeout`) or at all
(`crashed`), cut off at the token limit (`at_limit`), completed by a retry (`answer_retry`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rmas_jax.config import ConfigError
from rmas_jax.config.benchmark import ACCURACY
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.answerer import (
    Answerer,
    Answering,
    BatchAnswers,
    Prompts,
    answerers,
)
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.grading import graded_rows, result_row
from rmas_jax.evaluation.methods import METHODS, SHUFFLED
from rmas_jax.evaluation.record import Record, open_record
from rmas_jax.evaluation.rows import Measurement, ResultRow
from rmas_jax.host.compilations import compilations
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.host.preemption import end_if_due
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.links import Links
from rmas_jax.prompts import RolePrompt, take
from rmas_jax.sharding import put_whole
from rmas_jax.team import Team

ORDER_SEED = 0  # of the order of items in a split


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedBenchmark:
    """A benchmark, ready to run."""

    name: str
    version: str  # of its definition and its data
    grader: Grader
    splits: Mapping[str, Sequence[Example]]  # split, or part of one -> its examples
    prompts: Mapping[str, RolePrompt]  # by role, for its type of task
    answering: Answering
    description: str = ""
    metric: str = ACCURACY

    @property
    def columns(self) -> dict[str, str]:
        """The columns that all its results share."""
        return {
            "benchmark_version": self.version,
            "description": self.description,
            "metric": self.metric,
            "grader": self.grader.name,
        }


def evaluate(
    team: Team,
    links: Links,
    aligned_links: Links,
    benchmarks: Sequence[LoadedBenchmark],
    directory: str | Path,
    *,
    methods: Sequence[str],
    rounds: Sequence[int],
    batch_size: int,
    seed: int,
    progress: bool = True,
) -> list[ResultRow]:
    """Measures benchmarks x methods x rounds x splits; skips measurements already in `directory`.

    Args:
      team: the system, its agents and tokenizers.
      links: parameters of the trained links.
      aligned_links: parameters of the links before outer training.
      benchmarks: the questions.
      directory: of `items.jsonl` and `results.json`.
      methods: names of `methods.METHODS`.
      rounds: numbers of rounds; an agent alone has one.
      batch_size: B; items that do not count fill up the last batch.
      seed: of the run; with an item's place in its split, it determines the item's PRNG keys.
      progress: whether to show a bar.

    Returns:
      All rows of `results.json`.

    Raises:
      PreemptedError: after SIGTERM; finished items stay.
      ValueError: unknown method.
      ConfigError: see `in_order`; or a benchmark differs from the one measured under its name.
      NonFiniteError: an agent's numbers are NaN or infinite; their answers do not count.
    """
    links, aligned_links = put_whole((links, aligned_links), team.mesh)
    benchmarks = [in_order(b, methods=methods, batch_size=batch_size) for b in benchmarks]
    measurements = [
        (benchmark, answerer, key)
        for benchmark in benchmarks
        for answerer in answerers(team, links, aligned_links, methods, rounds, benchmark.answering)
        for split in benchmark.splits
        for key in [Measurement(answerer.name, answerer.rounds, benchmark.name, split, seed)]
    ]
    record = open_record(Path(directory))
    _check_versions(record, benchmarks)
    pending = [work for work in measurements if not record.has(work[-1])]

    @functools.cache
    def encoded(benchmark: LoadedBenchmark, slot_width: int) -> dict[str, Prompts]:
        return _encode(team, benchmark, slot_width)

    total = sum(
        len(list(batches(len(benchmark.splits[key.split]), batch_size)))
        for benchmark, _, key in pending
    )
    with tqdm(total=total, disable=not progress, unit="batch") as bar:
        for benchmark, answerer, key in pending:
            bar.set_description(str(key))
            prompts = encoded(benchmark, answerer.slot_width)[key.split]
            answer = functools.partial(_answer, answerer, prompts, seed)
            measure(record, key, benchmark, answer, answerer.columns, batch_size, bar)
    return record.rows


def _answer(answerer: Answerer, prompts: Prompts, seed: int, rows: np.ndarray) -> BatchAnswers:
    return answerer.answer(take(prompts, rows), answerer.keys(seed, rows))


def measure(
    record: Record,
    key: Measurement,
    benchmark: LoadedBenchmark,
    answer: Callable[[np.ndarray], BatchAnswers],
    of_method: Mapping[str, int],
    batch_size: int,
    bar: tqdm,
) -> None:
    """Answers and grades a split, batch by batch, and records it.

    Args:
      record: gets the items and, in the end, their row.
      key: of the measurement.
      benchmark: its split's items, in running order, and its grader.
      answer: rows [B] of the split -> their answers, on the host.
      of_method: `Answerer.columns`.
      batch_size: B.
      bar: moves by one with each batch.

    Raises:
      PreemptedError, NonFiniteError: see `evaluate`.
    """
    items, graded = benchmark.splits[key.split], []
    seconds, rows_run = 0.0, 0
    for rows, kept in batches(len(items), batch_size):
        end_if_due(
            f"evaluation stopped in {key}; what was measured before is kept in "
            f"{record.results_path.parent}"
        )
        try:
            answers, batch_seconds = _timed(functools.partial(answer, rows))
        except NonFiniteError as error:
            ids = [items[row].id for row in rows]
            raise error.inside(f"evaluation of {key}", ids) from None
        seconds += batch_seconds
        rows_run += len(rows)
        asked = [items[row] for row in rows[:kept]]
        grade = functools.partial(graded_rows, key, asked, benchmark.grader, answers)
        fresh = broadcast_from_first(grade)  # a judge is asked once
        record.add_items(fresh)
        graded += fresh
        bar.update()
    columns = {**benchmark.columns, **of_method}
    record.finish(result_row(key, columns, graded, seconds / rows_run))


def _check_versions(record: Record, benchmarks: Sequence[LoadedBenchmark]) -> None:
    """Checks that recorded measurements belong to the current benchmarks."""
    versions = {benchmark.name: benchmark.version for benchmark in benchmarks}
    for row in record.rows:
        now = versions.get(row["benchmark"])
        if now is not None and row.get("benchmark_version", now) != now:
            raise ConfigError(
                f"evaluation.benchmarks: {row['benchmark']} has changed since it was measured in "
                f"{record.results_path}; choose another name for the run (--set name=...)"
            )


def _encode(team: Team, benchmark: LoadedBenchmark, slot_width: int) -> dict[str, Prompts]:
    """Prompts by split; tokenised together, so that all splits have the same widths."""
    questions = [item.question for items in benchmark.splits.values() for item in items]
    prompts = team.encode(questions, slot_width=slot_width, templates=benchmark.prompts)
    ends = np.cumsum([len(items) for items in benchmark.splits.values()])
    return {
        split: take(prompts, np.arange(end - len(items), end))
        for (split, items), end in zip(benchmark.splits.items(), ends, strict=True)
    }


def in_order(
    benchmark: LoadedBenchmark, *, methods: Sequence[str], batch_size: int
) -> LoadedBenchmark:
    """The benchmark with the items of every split in running order.

    Raises:
      ConfigError: a split without items; the shuffled control with batches of one item, or with
        the same question in adjacent items.
    """
    if empty := [split for split, items in benchmark.splits.items() if not items]:
        raise ConfigError(
            f"evaluation.benchmarks: {benchmark.name}: {', '.join(empty)}: no items to evaluate on"
        )
    splits = {
        split: [items[i] for i in np.random.default_rng(ORDER_SEED).permutation(len(items))]
        for split, items in benchmark.splits.items()
    }
    if any(METHODS[name].is_shuffled for name in methods if name in METHODS):
        _check_neighbours(benchmark.name, splits, batch_size)
    return dataclasses.replace(benchmark, splits=splits)


def _timed(answer: Callable[[], BatchAnswers]) -> tuple[BatchAnswers, float]:
    """Answers to a batch, and their seconds without compilation.

    A second run gives the same answers, except with tools that do not; these compile few programs
    too, as texts are padded to powers of two.
    """
    while True:
        known, started = compilations(), time.perf_counter()
        answers = answer()  # on the host: the device has finished
        seconds = time.perf_counter() - started
        if compilations() == known:
            return answers, seconds


def batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows [size] of every batch of `count` items, and how many of them count.

    The item before a batch's first one fills up an incomplete batch: the shuffled control gives the
    first row the thoughts of the last, so every item still gets another's.
    """
    for start in range(0, count, size):
        kept = min(size, count - start)
        rows = np.full(size, (start - 1) % count)
        rows[:kept] = np.arange(start, start + kept)
        yield rows, kept


def _check_neighbours(name: str, splits: Mapping[str, Sequence[Example]], batch_size: int) -> None:
    """Checks that the shuffled control gives every item the thoughts of another question."""
    if batch_size < 2:
        raise ConfigError(f"evaluation.batch_size={batch_size}: {SHUFFLED} needs at least 2")
    for split, items in splits.items():
        for rows, kept in batches(len(items), batch_size):
            questions = [items[row].question for row in rows]
            for i in range(kept):
                if questions[i] == questions[i - 1]:
                    raise ConfigError(
                        f"evaluation.benchmarks: {name}: {split}: {SHUFFLED} would give an "
                        f"item thoughts about its own question, {questions[i]!r}; leave repeated "
                        "questions out, or the control (evaluation.methods)"
                    )
