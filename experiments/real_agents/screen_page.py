"""Which generators of a screen are selected, and its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.real_agents.skill_card import Share
from rmas_jax.host.errors import clipped
from rmas_jax.reporting.table import Table

SHOWN = 60  # characters of an answer


class Screened(NamedTuple):
    """A generator whose questions were answered."""

    generator: str
    share: Share
    constant: Share  # of the most frequent gold answer: an answerer that reads no question
    prompt_tokens: int  # of the longest prompt
    answers: Sequence[Mapping[str, Any]]

    def is_within(self, low: float, high: float) -> bool:
        """Whether the share of right answers lies within limits in %, which belong to it."""
        return low <= 100 * self.share.value <= high


def screened_rows(rows: Sequence[Mapping[str, Any]]) -> list[Screened]:
    """The generators with answers, the best first."""
    found = []
    for row in rows:
        if answers := row["answers"]:
            counts = Counter(answer["gold"] for answer in answers)
            right, most = sum(answer["correct"] for answer in answers), max(counts.values())
            of = Share(right, len(answers)), Share(most, len(answers))
            found.append(Screened(row["generator"], *of, row["prompt_tokens"], answers))
    return sorted(found, key=lambda one: (-one.share.value, one.generator))


def selected(rows: Sequence[Mapping[str, Any]], *, low: float, high: float) -> list[str]:
    """The generators of which a share within limits in % is right, by name."""
    return sorted(one.generator for one in screened_rows(rows) if one.is_within(low, high))


def page(report: Mapping[str, Any], *, low: float, high: float) -> str:
    """The page of a report.

    Args:
      report: settings, and rows: generator, prompt_tokens, answers, and left_out, the reason.
      low, high: limits of selected shares, in %.
    """
    settings, rows = report["settings"], report["rows"]
    chosen = selected(rows, low=low, high=high)
    model = settings["model"]
    name = ", ".join(model) if isinstance(model, Mapping) else model
    left_out = [f"* {row['generator']}: {row['left_out']}" for row in rows if row["left_out"]]
    parts = [
        "# What a single agent answers",
        f"{name} alone, on up to {settings['items']} validation questions of each generator of "
        f"reasoning-gym {settings['release']}: greedy answers of at most "
        f"{settings['max_new_tokens']} tokens; only the verifier's full score counts as right. "
        f"Selected are generators with {low:g} to {high:g} % right answers; with so few "
        "questions, the share of a selected one may well lie outside. The constant answer is the "
        "most frequent one among these questions: no reading of a question is needed for it.",
        f"Selected, {len(chosen)}: {', '.join(chosen) or 'none'}.",
        table(rows, low=low, high=high).to_markdown(),
        *([f"Left out, {len(left_out)}:", "\n".join(left_out)] if left_out else []),
        *([examples(rows, chosen).to_markdown()] if chosen else []),
    ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Mapping[str, Any]], *, low: float, high: float) -> Table:
    """Generators by their share of right answers."""
    return Table(
        "Right answers in %, [95 % Wilson interval]",
        ("generator", "selected", "right", "constant answer", "at the token limit", "prompt"),
        tuple(
            (
                one.generator,
                "yes" if one.is_within(low, high) else "",
                str(one.share),
                f"{100 * one.constant.value:.1f}",
                str(sum(answer["at_limit"] for answer in one.answers)),
                str(one.prompt_tokens),
            )
            for one in screened_rows(rows)
        ),
        text_columns=2,
        note="prompt: tokens of the longest one",
    )


def examples(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> Table:
    """A right and a wrong answer of each selected generator."""
    found = []
    for one in screened_rows(rows):
        if one.generator not in chosen:
            continue
        for is_right, verdict in ((True, "right"), (False, "wrong")):
            of = [answer for answer in one.answers if answer["correct"] == is_right]
            for answer in of[:1]:
                texts = shown(answer["text"]), shown(answer["gold"])
                found.append((one.generator, verdict, *texts))
    return Table(
        "First answers of the selected generators",
        ("generator", "verdict", "answer", "gold answer"),
        tuple(found),
        text_columns=4,
    )


def shown(text: str) -> str:
    """A text in a cell of Markdown, on one line."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{clipped(line, SHOWN)}`"
