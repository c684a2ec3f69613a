"""Benchmarks as data, and a run's choice of them."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.data import DataConfig
from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import MAX_NAME, MAX_ROLLOUTS, MAX_TOKENS


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerConfig(Section):
    """How answers are written; a run's fields override a benchmark's, null is unset."""

    max_new_tokens: int | None = option(
        "longest answer, in tokens; default 16", None, at_least=1, at_most=MAX_TOKENS
    )
    temperature: float | None = option(
        "answers are drawn at this temperature; default 0: the likeliest tokens", None, at_least=0
    )
    top_k: int | None = option(
        "of drawn answers: only the k likeliest tokens; default 0: all", None, at_least=0
    )
    top_p: float | None = option(
        "of drawn answers: only the likeliest tokens that hold this probability; default 1",
        None,
        above=0,
        at_most=1,
    )
    rollouts: int | None = option(
        "answers to each question, from the same latents or messages; default 1",
        None,
        at_least=1,
        at_most=MAX_ROLLOUTS,
    )

    def over(self, other: "AnswerConfig") -> "AnswerConfig":
        """These fields; unset ones are those of another."""
        names = [field.name for field in dataclasses.fields(self)]
        return AnswerConfig(
            **{
                name: getattr(other, name) if getattr(self, name) is None else getattr(self, name)
                for name in names
            }
        )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Several greedy answers would be the same; unset fields are not checked."""
        if self.temperature == 0:
            if (self.rollouts or 1) > 1:
                yield "rollouts", f"must be 1 while temperature is 0, got {self.rollouts}"
            for name, off in (("top_k", 0), ("top_p", 1.0)):
                if (value := getattr(self, name)) not in (None, off):
                    yield name, f"must be unset while temperature is 0, got {value}"


DEFAULT_ANSWERS = AnswerConfig(max_new_tokens=16, temperature=0.0, top_k=0, top_p=1.0, rollouts=1)


ACCURACY, PASS_AT_K = METRICS = ("accuracy", "pass_at_k")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Section):
    """A benchmark: a file in rmas_jax/evaluation/benchmarks, or one of the user's own."""

    name: str = option("its name in results", pattern=r"\w[\w.+-]*", longest=MAX_NAME)
    description: str = option("one sentence for the reader of a list", "one's own questions")
    data: DataConfig = option("its questions and how answers are compared, as in a run's data")
    items: dict[str, int] | None = option(
        "split -> number of its questions; data with another number are refused, null: any number",
        None,
        at_least=1,
    )
    checksum: dict[str, str] | None = option(
        "split -> checksum of its ids, questions, gold answers and tests; other data are refused, "
        "null: any data of that number, whose checksum a run logs (and rmas benchmarks NAME --load "
        "prints)",
        None,
    )
    licence: str | None = option("of the data, in words", None)
    access: str | None = option("how to get the data, where it is not simply downloaded", None)
    task_type: str | None = option(
        "type of task, for prompt sets that serve several (as system.task_type)", None
    )
    splits: tuple[str, ...] = option(
        "splits that count where a run names none", ("test",), distinct=True
    )
    sampling: AnswerConfig = option("how answers are written", AnswerConfig())
    metric: str = option(
        "its headline number: share of right first answers, or of questions with a right rollout",
        ACCURACY,
        choices=METRICS,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """pass@k needs several rollouts."""
        if self.metric == PASS_AT_K and (self.sampling.rollouts or 1) < 2:
            yield "metric", f"must be {ACCURACY} without several sampling.rollouts, got {PASS_AT_K}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkChoice(Section):
    """A benchmark of a run."""

    name: str = option(
        "a benchmark of the package, the path of a YAML file of one, or data: the questions of the "
        "run's own data",
        path="file or name",
    )
    splits: tuple[str, ...] | None = option(
        "splits, or parts of them as tfds writes it: test[:500]; null: those of the benchmark",
        None,
        distinct=True,
    )
    metric: str | None = option(
        "its headline number; null: that of the benchmark", None, choices=METRICS
    )
    checksum: dict[str, str] | None = option(
        "split -> checksum that its data must have, in place of the benchmark's; null: the "
        "benchmark's",
        None,
    )
