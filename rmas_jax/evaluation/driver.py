"""Runs methods over splits, item by item, and records accuracy and cost.

Items run in batches of like length (`batches`), padded to the declared width of the longest. An
item's answers do not depend on its batch, and their PRNG keys follow from the seed and the item's
place in its split.

Measures per item: tokens written by all agents (end tokens count), sequential model steps (a prompt
is read in the step of the first token or thought after it): the longest chain in which each needs
the one before, so that agents who do not wait for each other count as the longest of them, item by
item (`rounds.schedules.longest_chain`); model FLOPs of useful work (prompts, thoughts, links,
messages and answers of all agents; `models.flops`); and seconds: the wall time of whole batches
over the rows of these batches, host work between agents included. Compile time is excluded: methods
share programs, and the first would be charged for all (`rollouts`). What methods compute alike is
computed once, and counts for each of them (`shared`). Tokenisation of questions and
prompts, the same for all methods, is excluded too. Where questions have several answers, accuracy
is of the first one; where the benchmark's metric is `pass_at_k`, it is the share of questions with
a right one. Tokens, steps and FLOPs are of the answers that the metric uses: with `pass_at_k`,
tokens and FLOPs are summed over all of them, each of which reads the answering agent's prompt again
after one set of thoughts or messages, and steps are the longest one's, as they do not wait for each
other. Seconds are of all. An interrupted
measurement resumes with its missing rollouts, and keeps the seconds of the others.

Counts of answers, of all rollouts: without an answer (`unparsed`), not graded in time (`timeout`)
or at all (`crashed`), cut off at the token limit (`at_limit`), completed by a retry
(`answer_retry`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rmas_jax.agents.adapters import Tuned
from rmas_jax.config import ConfigError
from rmas_jax.config.benchmark import ACCURACY
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.answerer import Answerer, answerers
from rmas_jax.evaluation.answering import Answering, Listened, Prompts
from rmas_jax.evaluation.batches import Batch, batches, check_neighbours, running_order
from rmas_jax.evaluation.benchmarks.loading import checksum_of
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.grading import graded_rows, join_rollouts, result_row
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.evaluation.record import Record, open_record
from rmas_jax.evaluation.refill import write_refilled
from rmas_jax.evaluation.rollouts import Listen, Work, write_batches
from rmas_jax.evaluation.rows import Measurement, ResultRow
from rmas_jax.evaluation.shared import SHARED_BYTES, Shared
from rmas_jax.evaluation.under_way import Finished, UnderWay
from rmas_jax.host.errors import shown
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.host.preemption import end_if_due
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.links import Links
from rmas_jax.prompts import RolePrompt, declared_width
from rmas_jax.rounds.schedules import RECURSION
from rmas_jax.sharding import put_whole
from rmas_jax.team import Team


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedBenchmark:
    """A benchmark, ready to run."""

    name: str
    version: str  # of its grading: the strict grader, with its settings
    grader: Grader
    splits: Mapping[str, Sequence[Example]]  # split, or part of one -> its examples
    prompts: Mapping[str, RolePrompt]  # by role, for its type of task
    answering: Answering
    description: str = ""
    metric: str = ACCURACY
    # Schedule -> prompts by role, of methods with prompts of their own.
    method_prompts: Mapping[str, Mapping[str, RolePrompt]] = dataclasses.field(default_factory=dict)
    task_type: str | None = None

    @property
    def templates(self) -> dict[str, Mapping[str, RolePrompt]]:
        """All prompts, by schedule and role."""
        return {RECURSION: self.prompts, **self.method_prompts}

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Split -> a digest of its questions, their gold answers and the strict grader."""
        return {
            split: hashlib.sha256(f"{self.version} {checksum_of(items)}".encode()).hexdigest()[:16]
            for split, items in self.splits.items()
        }

    @property
    def prompt_columns(self) -> set[str]:
        """The columns of the data in any of the prompts."""
        sets = self.templates.values()
        return {name for of in sets for prompt in of.values() for name in prompt.columns}

    def order(self, split: str) -> np.ndarray:
        """Places of a split's items in the order in which they run."""
        return running_order(self.splits[split], self.prompt_columns)

    def identity(self, split: str) -> dict[str, str]:
        """The columns of a split's results on which a measured answer and its verdict depend."""
        return {
            "benchmark_version": self.versions[split],
            "sampling": self.answering.description,
            "metric": self.metric,
            "task_type": self.task_type or "",
        }

    def columns(self, split: str) -> dict[str, str]:
        """The columns that all results of a split share."""
        shared = {"description": self.description, "grader": self.grader.name}
        return {**self.identity(split), **shared}

    def batches(self, split: str, size: int) -> list[Batch]:
        """The batches of a split, of `size` rows each."""
        return list(batches(self.order(split), size))

    def seeds(self, chosen: Sequence[int]) -> Sequence[int]:
        """The seeds that are measured: greedy answers are alike for all, so that one is enough."""
        return chosen if self.answering.sampling.temperature > 0 else chosen[:1]


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
    seeds: Sequence[int],
    tuned: Mapping[str, Tuned] | None = None,
    shared_bytes: int = SHARED_BYTES,
    progress: bool = True,
) -> list[ResultRow]:
    """Measures benchmarks x splits x methods x rounds x seeds; skips those done in `directory`.

    Args:
      team: the system, its agents and tokenizers.
      links: parameters of the trained links.
      aligned_links: parameters of the links before outer training.
      benchmarks: the questions.
      directory: of `items.jsonl`, `results.json` and, during a measurement, `under_way.jsonl`.
      methods: names of `methods.METHODS`.
      rounds: numbers of rounds; an agent alone has one.
      batch_size: B; items that do not count fill up the last batch.
      seeds: with an item's place in its split, each determines the item's PRNG keys.
      tuned: method -> its answerer, for methods that have tuned it.
      shared_bytes: memory on each device for what methods compute alike (`shared`); 0: each
        computes all of its own.
      progress: whether to show a bar.

    Returns:
      All rows of `results.json`.

    Raises:
      PreemptedError: after SIGTERM; finished rollouts stay.
      ValueError: unknown method.
      ConfigError: see `check_items`; or a benchmark differs from the one measured under its name.
      NonFiniteError: an agent's numbers are NaN or infinite; their answers do not count.
    """
    links, aligned_links = put_whole((links, aligned_links), team.mesh)
    for benchmark in benchmarks:
        check_items(benchmark, methods=methods, batch_size=batch_size)
    shared = Shared(shared_bytes)
    measurements = [
        (benchmark, answerer, key)
        for benchmark in benchmarks
        for split in benchmark.splits
        for answerer in answerers(
            team,
            links,
            aligned_links,
            methods,
            rounds,
            benchmark.answering,
            benchmark.templates,
            tuned=tuned,
            shared=shared,
        )
        for seed in benchmark.seeds(seeds)
        for key in [Measurement(answerer.name, answerer.rounds, benchmark.name, split, seed)]
    ]
    record = open_record(Path(directory))
    _check_identity(record, benchmarks)
    pending = [work for work in measurements if not record.has(work[-1])]

    @functools.cache  # methods share prompts
    def encoded(
        team: Team, benchmark: LoadedBenchmark, split: str, schedule: str, slot_width: int
    ) -> dict[int, Prompts]:
        found, templates = benchmark.batches(split, batch_size), benchmark.templates[schedule]
        return encode_batches(team, benchmark, split, found, templates, slot_width=slot_width)

    total = sum(
        len(benchmark.batches(key.split, batch_size)) * benchmark.answering.rollouts
        for benchmark, _, key in pending
    )
    with tqdm(total=total, disable=not progress, unit="rollout of a batch") as bar:
        for _, of_split in itertools.groupby(pending, key=_split):
            shared.clear()
            for benchmark, answerer, key in of_split:
                bar.set_description(str(key))
                prompts = encoded(
                    answerer.team,
                    benchmark,
                    key.split,
                    answerer.method.schedule,
                    answerer.slot_width,
                )
                listen = functools.partial(_listen, answerer, prompts)
                measure(record, key, benchmark, answerer, listen, batch_size=batch_size, bar=bar)
    return record.rows


def _split(work: tuple[LoadedBenchmark, Answerer, Measurement]) -> tuple[str, str]:
    """The benchmark and the split of a measurement."""
    return work[-1].benchmark, work[-1].split


def _listen(answerer: Answerer, prompts: Mapping[int, Prompts], rows: np.ndarray) -> Listened:
    return answerer.listen(prompts[int(rows[0])])


def measure(
    record: Record,
    key: Measurement,
    benchmark: LoadedBenchmark,
    answerer: Answerer,
    listen: Listen,
    *,
    batch_size: int,
    bar: tqdm,
) -> None:
    """Answers and grades a split, rollout by rollout of a batch, and records it.

    Args:
      record: gets the finished rollouts and, in the end, the items and their row.
      key: of the measurement.
      benchmark: its split's items, and its grader.
      answerer: who writes the answers.
      listen: rows [B], places in the split -> what precedes their answers.
      batch_size: B.
      bar: moves by one with each rollout of a batch.

    Raises:
      PreemptedError, NonFiniteError: see `evaluate`.
    """
    items, rollouts = benchmark.splits[key.split], range(answerer.answering.rollouts)
    found = benchmark.batches(key.split, batch_size)
    under_way = record.begin(key, benchmark.identity(key.split))
    works = list(missing_work(under_way, items, found, rollouts))
    bar.update(len(found) * len(rollouts) - sum(len(work.rollouts) for work in works))
    write = write_refilled if answerer.refills else write_batches
    written = write(answerer, listen, works, seed=key.seed)
    while True:
        end_if_due(
            f"evaluation stopped in {key}; what was measured before is kept in "
            f"{record.results_path.parent}"
        )
        try:
            fresh = next(written, None)
        except NonFiniteError as error:
            raise error.inside(f"evaluation of {key}", [item.id for item in items]) from None
        if fresh is None:
            break
        asked = [items[row] for row in fresh.batch.rows[: fresh.batch.kept]]
        grade = functools.partial(graded_rows, key, asked, benchmark.grader, fresh.answers)
        graded = broadcast_from_first(grade)  # a judge is asked once
        under_way.add([Finished(fresh.rollout, fresh.seconds, row) for row in graded])
        bar.update()
    finished = under_way.finished
    joined = [
        join_rollouts([finished[items[place].id, k].item for k in rollouts], benchmark.metric)
        for place in benchmark.order(key.split)
    ]
    seconds = sum(one.seconds for one in finished.values()) / len(items)
    columns = {**benchmark.columns(key.split), **answerer.columns}
    record.finish(result_row(key, columns, joined, seconds), joined)


def missing_work(
    under_way: UnderWay, items: Sequence[Example], found: Sequence[Batch], rollouts: Sequence[int]
) -> Iterator[Work]:
    """The batches that lack rollouts of an item, and which.

    They run whole: the shuffled control gives an item the thoughts of another one of its batch.
    """
    for batch in found:
        ids = [items[row].id for row in batch.rows[: batch.kept]]
        missing = [k for k in rollouts if any((id_, k) not in under_way.finished for id_ in ids)]
        if missing:
            yield Work(batch, missing)


def _check_identity(record: Record, benchmarks: Sequence[LoadedBenchmark]) -> None:
    """Checks that recorded measurements belong to the current benchmarks."""
    current = {
        (benchmark.name, split): benchmark.identity(split)
        for benchmark in benchmarks
        for split in benchmark.splits
    }
    for row in record.rows:
        now = current.get((row["benchmark"], row["split"]), {})
        for column, value in now.items():
            if row.get(column, value) != value:
                raise ConfigError(
                    f"evaluation.benchmarks: {row['benchmark']} {row['split']} has changed since "
                    f"it was measured in {record.results_path}: {column} must be "
                    f"{shown(row.get(column))}, got {shown(value)}; choose another name for the "
                    "run (--set name=...)"
                )


def encode_batches(
    team: Team,
    benchmark: LoadedBenchmark,
    split: str,
    found: Sequence[Batch],
    templates: Mapping[str, RolePrompt],
    *,
    slot_width: int,
) -> dict[int, Prompts]:
    """Prompts of a split's batches, by the place of a batch's first item."""
    items = benchmark.splits[split]
    return {
        int(rows[0]): team.encode(
            [items[row].inputs for row in rows],
            slot_width=slot_width,
            templates=templates,
            block_width=declared_width,
        )
        for rows, _ in found
    }


def check_items(benchmark: LoadedBenchmark, *, methods: Sequence[str], batch_size: int) -> None:
    """Checks that all splits of a benchmark can be measured.

    Raises:
      ConfigError: a split without items, or two of one id; see also `check_neighbours`, for the
        shuffled control.
    """
    for split, items in benchmark.splits.items():
        if not items:
            raise ConfigError(
                f"evaluation.benchmarks: {benchmark.name}: {split}: no items to evaluate on"
            )
        if twice := [id_ for id_, n in Counter(item.id for item in items).items() if n > 1]:
            raise ConfigError(
                f"evaluation.benchmarks: {benchmark.name}: {split}: ids of items must be distinct, "
                f"got {shown(twice[0])} more than once"
            )
    controls = (name for name in methods if name in METHODS and METHODS[name].is_shuffled)
    if control := next(controls, None):
        columns = benchmark.prompt_columns
        check_neighbours(benchmark.name, benchmark.splits, batch_size, columns, control=control)
