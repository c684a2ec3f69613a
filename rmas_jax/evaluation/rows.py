"""The rows of an evaluation: one per answered question, and one per measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

from rmas_jax.config.benchmark import ACCURACY, PASS_AT_K
from rmas_jax.evaluation.crossings import Crossed


class Measurement(NamedTuple):
    """The key of a result, common to all its items."""

    method: str
    rounds: int
    benchmark: str
    split: str  # of the benchmark, or a part of one: test[:500]
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.method}, rounds {self.rounds}, {self.benchmark} {self.split}, seed {self.seed}"
        )


class Cost(TypedDict):
    """The cost of an answer, without the thoughts or messages before it."""

    tokens: int
    steps: int
    flops: float


class Rollout(TypedDict):
    """One answer to a question."""

    text: str
    prediction: str | None  # the answer in the text; None: unparsed
    correct: bool
    outcome: str  # of `graders.verdict.Outcome`
    reason: NotRequired[str]  # of the outcome, where the grader gives one
    scores: NotRequired[dict[str, float]]  # further measures of the grader, 0 to 1
    at_limit: bool  # cut off at the token limit
    answer_retry: bool  # completed by a retry
    cost: NotRequired[Cost]  # of this answer alone
    agents: NotRequired[dict[str, Any]]  # role -> its own `Rollout`, where each answers alone
    selected: NotRequired[str]  # the role whose answer this is


class ItemRow(Rollout):
    """A line of `items.jsonl`: a question, with its first answer."""

    method: str
    rounds: int
    benchmark: str
    split: str
    seed: int
    id: str | int  # of the question, unique in a split
    question: str
    gold: str
    difficulty: int
    tokens: int  # written by all agents, in the rollouts that the metric uses
    steps: int  # sequential model steps: rollouts do not wait for each other
    flops: float  # model FLOPs of all agents in these rollouts, see `models.flops`
    prompt_hash: str  # SHA-256 of the answering agent's prompt, see `prompt_hashes`
    crossed: NotRequired[Crossed]  # by edge and round, as nearest tokens, where asked for
    rollouts: NotRequired[list[Rollout]]  # if several
    sweeps: NotRequired[int]  # of parallel thinking in all turns; `steps` are those of sequential


class ResultRow(TypedDict):
    """A row of `results.json`: a measurement, over n questions."""

    method: str
    rounds: int
    latent_steps: int  # 0 where nothing latent is passed
    benchmark: str
    split: str
    n: int
    correct: int
    accuracy: float
    ci_low: float  # of a 95 % Wilson interval
    ci_high: float
    tokens_per_item: float
    steps_per_item: float
    flops_per_item: NotRequired[float]
    sweeps_per_item: NotRequired[float]
    trained_parameters: NotRequired[int]  # of links or of another adapter; 0: none
    seconds_per_item: float
    seed: int
    benchmark_version: NotRequired[str]  # of the split's questions, golds and strict grader
    task_type: NotRequired[str]  # of the benchmark; "": none
    sampling: NotRequired[str]  # how answers were written
    description: NotRequired[str]  # of the benchmark
    metric: NotRequired[str]  # of the benchmark: the column with its headline number
    grader: NotRequired[str]  # with the settings of which its verdicts depend
    unparsed: NotRequired[int]  # answers by outcome, of all rollouts
    timeout: NotRequired[int]
    crashed: NotRequired[int]
    at_limit: NotRequired[int]
    answer_retry: NotRequired[int]
    rollouts: NotRequired[int]  # answers to a question, if several
    rollout_accuracy: NotRequired[float]  # mean over all answers
    pass_at_k: NotRequired[float]  # where it is the metric
    scores: NotRequired[dict[str, float]]  # means of the items' scores
    items_crc32: NotRequired[str]  # of the items, in order


def is_correct(item: ItemRow, metric: str) -> bool:
    """Whether a question counts as right: by its first answer, or by any rollout."""
    if metric == PASS_AT_K and "rollouts" in item:
        return any(rollout["correct"] for rollout in item["rollouts"])
    return item["correct"]


def metric_of(row: ResultRow) -> str:
    """The column with the headline number."""
    return row.get("metric") or ACCURACY


def rollouts_of(item: ItemRow) -> Sequence[Rollout]:
    """All answers to a question."""
    return item.get("rollouts") or [item]


def count_correct(row: ResultRow) -> int:
    """Questions of a measurement that count as right, by its metric."""
    return row["correct"] if metric_of(row) == ACCURACY else round(row["pass_at_k"] * row["n"])


def measurement(row: Mapping[str, Any]) -> Measurement:
    """The measurement of a row of either file."""
    return Measurement(*(row[name] for name in Measurement._fields))
