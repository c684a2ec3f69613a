"""A grader's verdict on one answer."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Outcome(enum.StrEnum):
    """How grading ended; only `CORRECT` is a correct answer, and the others are counted apart."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"  # the text has no answer of the expected kind
    TIMEOUT = "timeout"  # of the comparison, or of the program that was graded
    CRASHED = "crashed"  # likewise


class Verdict(NamedTuple):
    """An answer, as a grader reads and judges it."""

    prediction: str | None  # the answer in the text; None: unparsed
    outcome: Outcome
    reason: str = ""  # for a reader: "test 3: time limit"; "" where the outcome says it all
    scores: Mapping[str, float] = {}  # further measures of the answer by name, 0 to 1, such as f1

    @property
    def correct(self) -> bool:
        """Whether the answer counts."""
        return self.outcome is Outcome.CORRECT


def compared(prediction: str | None, is_equal: bool) -> Verdict:
    """The verdict on an answer, None if unparsed, that does or does not equal the gold answer."""
    if prediction is None:
        return Verdict(None, Outcome.UNPARSED)
    return Verdict(prediction, Outcome.CORRECT if is_equal else Outcome.WRONG)
