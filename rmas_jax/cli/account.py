"""The account of a question: what every stage did, what crossed the edges, and the answers.

It is printed while it grows:

    round 1  planner      thinks: 4 latents, no token        0.031 s
    round 1, planner->critic:
        1  'Kenal' 0.98  'Kekis' 0.43

    Kenal Bison, no gates left
    round 1  solver       answers: 7 tokens                  0.052 s
    all                                                      0.083 s
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmas_jax.serving.requests import StageEvent


class Step(NamedTuple):
    """A line of the account: a stage, or the answers."""

    round: int  # from 1
    role: str
    did: str
    seconds: float
    compiled: bool  # whether the seconds include compilation


class Account:
    """What is known of a question so far."""

    def __init__(self, question: str, columns: Mapping[str, str], *, inspects: bool):
        """Takes the question, and the columns of the prompts; `inspects`: prints nearest tokens."""
        self.question, self.columns, self.inspects = question, dict(columns), inspects
        self.steps: list[Step] = []
        self.crossed: list[dict[str, Any]] = []
        self.answers: list[str] = []
        self._is_open = False  # a line of a text is not ended
        print(f"\n{question}\n")

    @property
    def as_row(self) -> dict[str, Any]:
        """The account as a row of JSON."""
        return {
            "question": self.question,
            "columns": self.columns,
            "answers": self.answers,
            "steps": [step._asdict() for step in self.steps],
            "crossed": self.crossed,
        }

    def stage(self, event: StageEvent) -> None:
        """Adds a stage before the answers."""
        place = event.round, event.role
        if event.text is not None:
            did = f"writes: {event.tokens} tokens"
        else:
            by = "no token" if event.sweeps is None else f"{event.sweeps} sweeps"
            count = max((len(crossing.norms) for crossing in event.sent.values()), default=0)
            did = f"thinks: {count} latents, {by}"
        self.step(Step(*place, did, event.seconds, event.compiled))
        if event.text is not None:
            self.crossed.append({"round": event.round, "role": event.role, "text": event.text})
            print(f"  round {event.round}, {event.role}: {event.text!r}")
        for name, crossing in event.sent.items():
            self.crossed.append({"round": event.round, "edge": name})
            if self.inspects:
                self.crossed[-1]["nearest"] = rounded(crossing.nearest)
                self._print_nearest(event.round, name)
        if event.change is not None:
            self.crossed.append({"round": event.round, "change": event.change})
            print(f"  round {event.round}: what reaches the answerer moved by {event.change:.3f}")

    def step(self, step: Step) -> None:
        """Adds a line."""
        self._end_line()
        self.steps.append(step)
        note = "  (compilation included)" if step.compiled else ""
        place = f"  round {step.round}  {step.role:<12} {step.did:<32}"
        print(f"{place} {step.seconds:8.3f} s{note}", flush=True)

    def write(self, index: int, text: str) -> None:
        """Adds to an answer; the text of a single one is printed as it comes."""
        self.answers += [""] * (index + 1 - len(self.answers))
        self.answers[index] += text
        if index == 0:
            print("" if self._is_open else "\n", text, sep="", end="", flush=True)
            self._is_open = True

    def end(self) -> None:
        """Prints the other answers, and the time of all steps."""
        self._end_line()
        for answer in self.answers[1:]:
            print(f"\n{answer}")
        total = sum(step.seconds for step in self.steps)
        print(f"  all      {'':<12} {'':<32} {total:8.3f} s", flush=True)

    def _print_nearest(self, round_: int, edge: str) -> None:
        print(f"  round {round_}, {edge}:")
        for i, tokens in enumerate(self.crossed[-1]["nearest"], start=1):
            print(f"    {i:3}  " + "  ".join(f"{text!r} {near:.2f}" for text, near in tokens))

    def _end_line(self) -> None:
        if self._is_open:
            print()
        self._is_open = False


def rounded(
    nearest: Sequence[Sequence[tuple[str, float]]],
) -> list[list[tuple[str, float]]]:
    """Nearest tokens with cosines of three digits."""
    return [[(text, round(near, 3)) for text, near in row] for row in nearest]
