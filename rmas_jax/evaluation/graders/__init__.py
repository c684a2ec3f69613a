"""Graders: check a text's answer. To add one, add an entry to `GRADERS`."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rmas_jax.config import ConfigError
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders import legacy
from rmas_jax.evaluation.graders.choice import grade_choice
from rmas_jax.evaluation.graders.code import grade_code, has_tests
from rmas_jax.evaluation.graders.judge import grade_judge, judge_model
from rmas_jax.evaluation.graders.mathematics import grade_math, reads_math
from rmas_jax.evaluation.graders.qa import grade_qa
from rmas_jax.evaluation.graders.reasoning import grade_reasoning, is_generated
from rmas_jax.evaluation.graders.relay import grade_relay
from rmas_jax.evaluation.graders.text import grade_text
from rmas_jax.evaluation.graders.verdict import Verdict
from rmas_jax.host.errors import InputError, shown
from rmas_jax.tools import SandboxError, check_sandbox

log = logging.getLogger(__name__)


class Package(NamedTuple):
    """An optional package that a grader needs."""

    module: str
    distribution: str
    extra: str


@dataclasses.dataclass(frozen=True)
class Grader:
    """A comparison of a system's text with the gold answer."""

    name: str
    compares: str  # in words, for tables and help
    function: Callable[[str, Example], Verdict]
    # Format of a gold answer, for errors.
    gold: str = "text that does not end in a thinking block or an empty box"
    needs: Package | None = None
    # What verdicts also depend on, such as a model, for the name; InputError where it is unusable.
    setting: Callable[[], str] | None = None
    needs_sandbox: bool = False
    # Whether a gold answer is readable; None: if it is right against itself.
    reads_gold: Callable[[Example], bool] | None = None
    # Whether a prediction can be the gold answer of another text, as votes need it.
    equates: bool = True

    def __call__(self, text: str, example: Example) -> Verdict:
        """The verdict on a system's text, the answer to an example's question."""
        return self.function(text, example)

    def reads(self, example: Example) -> bool:
        """Whether an answer could equal an example's gold answer."""
        if self.reads_gold is not None:
            return self.reads_gold(example)
        return self(example.answer, example).correct


GRADERS: dict[str, Grader] = {
    grader.name: grader
    for grader in (
        Grader(
            "relay",
            "the pass phrases",
            grade_relay,
            gold="two words, and how many gates are left",
        ),
        Grader("text", "texts, but for case and spaces", grade_text),
        Grader("qa", "short answers in HotpotQA's normal form: exact match and F1", grade_qa),
        Grader(
            "math",
            "mathematical expressions",
            grade_math,
            gold="an expression, or a few words",
            reads_gold=reads_math,
            needs=Package("math_verify", "math-verify", "eval"),
        ),
        Grader(
            "choice",
            "letters of options",
            grade_choice,
            gold="one letter: B, (B), B: Paris, \\boxed{B}; the grader text compares whole texts",
        ),
        Grader(
            "judge",
            "answers, by a language model of your choice",
            grade_judge,
            setting=judge_model,
            equates=False,  # a request for each pair of answers
        ),
        Grader(
            "code",
            "what programs do in tests",
            grade_code,
            gold="those of rows with tests: data.fields or a rule must keep test (MBPP+), or "
            "public_test_cases, private_test_cases and metadata (LiveCodeBench)",
            needs_sandbox=True,
            reads_gold=has_tests,
            equates=False,
        ),
        Grader(
            "reasoning",
            "answers to questions of reasoning-gym, by its verifiers",
            grade_reasoning,
            gold="those of data.dataset: reasoning-gym, which keeps how to generate them",
            needs_sandbox=True,
            reads_gold=is_generated,
            equates=False,  # the verifier reads how to generate the question
            needs=Package("reasoning_gym", "reasoning-gym", "reasoning"),
        ),
    )
}


def default_grader(dataset: str, task_type: str | None) -> str:
    """The default grader's name for a data set and a task type."""
    if dataset == "relay":
        return "relay"
    return "choice" if task_type == "choice" else "text"


def find_grader(name: str, *, where: str) -> Grader:
    """The grader of a name; `where` is the setting that names it.

    Raises:
      ConfigError: unknown grader, or it needs a package, a setting or a sandbox that is missing.
    """
    if name not in GRADERS:
        raise ConfigError(f"{where} must be one of {', '.join(GRADERS)}, got {shown(name)}")
    grader = GRADERS[name]
    if grader.needs is not None:
        try:
            importlib.import_module(grader.needs.module)
        except ImportError:
            raise ConfigError(
                f"{where}={name} needs {grader.needs.distribution}: pip install "
                f"'rmas_jax[{grader.needs.extra}]'"
            ) from None
    if grader.needs_sandbox:
        try:
            check_sandbox()
        except SandboxError as error:
            raise ConfigError(f"{where}={name}: {error}") from None
    if grader.setting is not None:
        try:
            grader = dataclasses.replace(grader, name=f"{name} ({grader.setting()})")
        except InputError as error:
            raise ConfigError(f"{where}={name}: {error}") from None
    return grader


def with_legacy(grader: Grader, task_type: str | None) -> Grader:
    """The grader with upstream's comparison as `scores["legacy"]`; code has none."""
    if task_type == "code":
        return grader

    def grade(text: str, example: Example) -> Verdict:
        verdict = grader(text, example)
        score = float(legacy.agrees(text, example.answer, task_type))
        return verdict._replace(scores={**verdict.scores, "legacy": score})

    return dataclasses.replace(grader, name=f"{grader.name} and legacy", function=grade)


def check_golds(grader: Grader, splits: Mapping[str, Sequence[Example]]) -> None:
    """Warns of unreadable gold answers, which no answer equals.

    See `Grader.reads`.

    Args:
      grader: compares the answers.
      splits: split, or file -> its examples.

    Raises:
      ConfigError: all of a split are unreadable.
    """
    for split, items in splits.items():
        unread = [item for item in items if not grader.reads(item)]
        if not unread:
            continue
        message = (
            f"{split}: gold answers must be {grader.gold}, got {len(unread)} others of "
            f"{len(items)}, the first {shown(unread[0].answer)} in the row {shown(unread[0].id)}"
        )
        if len(unread) == len(items):
            raise ConfigError(f"{message} (grader {grader.name})")
        log.warning("%s (grader %s); no answer to these rows is right", message, grader.name)
