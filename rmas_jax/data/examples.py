"""One question with its answer and its role texts, for training and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a data set, independent of the source's column names."""

    id: str  # unique in a split
    question: str
    answer: str  # the gold answer; "" where the source has none
    difficulty: int = 0  # 0 where the source has none
    # Role -> one text per round, or one for all rounds until `in_rounds`; roles without texts are
    # missing.
    texts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)  # further columns, as text

    @property
    def inputs(self) -> dict[str, str]:
        """What prompts may have: the question and the further columns."""
        return {**self.fields, "question": self.question}

    def in_rounds(self, rounds: int) -> Example:
        """The example with a text per round, from one for all rounds or one for each."""
        texts = {
            role: texts * rounds if len(texts) == 1 else texts[:rounds]
            for role, texts in self.texts.items()
        }
        return dataclasses.replace(self, texts=texts)

    def texts_to_learn(self, role: str, answerer: str) -> tuple[str, ...]:
        """Target texts of a role: its own or, where it has none, the answerer's."""
        return self.texts.get(role, self.texts[answerer])
