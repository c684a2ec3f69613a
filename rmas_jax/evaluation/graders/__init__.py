"""Graders: check a text's answer. To add one, add an entry to `GRADERS`."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rmas_jax.config import ConfigError
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.choice import grade_choice
from rmas_jax.evaluation.graders.mathematics import grade_math
from rmas_jax.evaluation.graders.reasoning import grade_reasoning
from rmas_jax.evaluation.graders.relay import grade_relay
from rmas_jax.evaluation.graders.text import grade_text
from rmas_jax.evaluation.graders.verdict import Verdict
from rmas_jax.host.errors import shown

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
    gold: str = (
        "text that does not end in a thinking block or an empty box"  # a gold answer's format
    )
    needs: Package | None = None

    def __call__(self, text: str, example: Example) -> Verdict:
        """The verdict on a system's text, the answer to an example's question."""
        return self.function(text, example)


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
        Grader(
            "math",
            "mathematical expressions",
            grade_math,
            needs=Package("math_verify", "math-verify", "eval"),
        ),
        Grader(
            "choice",
            "letters of options",
            grade_choice,
            gold="one letter: B, (B), B: Paris, \\boxed{B}; the grader text compares whole texts",
        ),
        Grader(
            "reasoning",
            "by the verifiers of reasoning-gym",
            grade_reasoning,
            needs=Package("reasoning_gym", "reasoning-gym", "reasoning"),
        ),
    )
}


def default_grader(dataset: str, task_type: str | None) -> str:
    """The default grader's name for a data set and a type of task."""
    if dataset == "relay":
        return "relay"
    return "choice" if task_type == "choice" else "text"


def find_grader(name: str, *, where: str) -> Grader:
    """The grader of a name; `where` is the setting that names it.

    Raises:
      ConfigError: unknown grader, or it needs a package that is not installed.
    """
    if name not in GRADERS:
        raise ConfigError(f"{where}: must be one of {', '.join(GRADERS)}, got {shown(name)}")
    grader = GRADERS[name]
    if grader.needs is not None:
        try:
            importlib.import_module(grader.needs.module)
        except ImportError:
            raise ConfigError(
                f"{where}={name} needs {grader.needs.distribution}: pip install "
                f"'rmas_jax[{grader.needs.extra}]'"
            ) from None
    return grader


def check_golds(grader: Grader, splits: Mapping[str, Sequence[Example]]) -> None:
    """Warns of gold answers that a grader cannot read, for which no answer would be right.

    A gold answer is unreadable if it is not graded right against itself. Tests may stand in for it.

    Args:
      grader: compares the answers.
      splits: split, or file -> its examples.

    Raises:
      ConfigError: all of a split are unreadable.
    """
    for split, items in splits.items():
        unread = [item for item in items if item.answer and not grader(item.answer, item).correct]
        if not unread:
            continue
        message = (
            f"{split}: {len(unread)} of {len(items)} gold answers must be {grader.gold}; got, as "
            f"the first, {shown(unread[0].answer)} in the row {shown(unread[0].id)}"
        )
        if len(unread) == len(items):
            raise ConfigError(f"{message} (grader {grader.name})")
        log.warning("%s (grader %s); no answer to these rows is right", message, grader.name)
