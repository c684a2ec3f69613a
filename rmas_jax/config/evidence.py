"""The section of split evidence: the dials of a generated data set."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option

LARGEST = 1_000_000  # questions of a split, which are made in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceConfig(Section):
    """Questions whose facts are split between a planner and a solver."""

    hops: int = option(
        "facts that lead to the answer, held in turn by planner and solver, the last one by "
        "the solver; a round covers two; the difficulty of its questions",
        2,
        at_least=1,
        at_most=8,
    )
    pairs: int = option(
        "chains of facts, of which the question follows one: a role sees as many facts of each hop "
        "that it holds",
        4,
        at_least=2,
        at_most=12,
    )
    asked: bool = option(
        "whether the planner is to know the question; false: its text has all its pairs, and its "
        "prompt must not have {question}",
        True,
    )
    crossing: str = option(
        "names of places, which the planner sends: words (kitchen), surnames (Marlow), numbers of "
        "rooms (418) or codes (KX47)",
        "words",
        choices=("words", "names", "numbers", "codes"),
    )
    role: str | None = option(
        "a set for tuning this role alone: answers are its texts, and the column message has the "
        "other role's text; null: the questions of the team",
        None,
        choices=("planner", "solver"),
    )
    train: int = option("training questions", 2000, at_least=1, at_most=LARGEST)
    validation: int = option("validation questions", 500, at_least=1, at_most=LARGEST)
    test: int = option("test questions", 1000, at_least=1, at_most=LARGEST)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A planner that does not know the question has all pairs of one hop to send."""
        if not self.asked and self.hops != 2:
            yield "hops", f"must be 2 with asked: false, got {self.hops}"
