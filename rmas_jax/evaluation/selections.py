"""Selections: which agent's answer counts where all agents answer alone.

To add one, add an entry to `SELECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rmas_jax.evaluation.graders.verdict import Outcome, Verdict

MAJORITY: Final = "majority"
ANY_CORRECT: Final = "any_correct"

Selection = Callable[[Mapping[str, Verdict], Callable[[str, str], bool]], str]
# Verdicts by role in the topology's order, the answerer last; whether two roles' answers are equal
# -> the role whose answer counts.


def majority(verdicts: Mapping[str, Verdict], is_equal: Callable[[str, str], bool]) -> str:
    """The last role of the largest group of equal answers.

    Equality is transitive here: a group holds all answers that equal one of it. An unparsed answer
    has no vote; of equally large groups, the one with the last role wins. Without any vote, the
    answerer's text counts.
    """
    groups: list[list[str]] = []
    for role, verdict in verdicts.items():
        if verdict.prediction is None or verdict.outcome is Outcome.UNPARSED:
            continue
        joined = [group for group in groups if any(is_equal(role, other) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([*(other for group in joined for other in group), role])
    place = list(verdicts).index
    largest = max(
        groups or [list(verdicts)], key=lambda group: (len(group), max(map(place, group)))
    )
    return max(largest, key=place)


def any_correct(verdicts: Mapping[str, Verdict], _: Callable[[str, str], bool]) -> str:
    """The last role whose answer is correct; the answerer's where none is.

    An oracle: it reads the gold answer, so its accuracy bounds that of every selection.
    """
    roles = list(verdicts)
    return max(roles, key=lambda role: (verdicts[role].correct, roles.index(role)))


SELECTIONS: dict[str, Selection] = {MAJORITY: majority, ANY_CORRECT: any_correct}
