"""The page of `curve`: its figure, its tables, and whether the goal is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.real_agents.capacity_page import AT_LEAST, Bound, draw_curve, label_axes, percent
from rmas_jax.evaluation.metrics import PairedDifference, paired_difference, repeated_interval
from rmas_jax.reporting.results import points
from rmas_jax.reporting.table import ABSENT, Table

FIGURE = "curve.png"
TEXT, ALIGNED, TRAINED, NOTHING = "text", "aligned", "trained", "nothing"  # what sends
MEANS, KEPT = "means", "kept"  # what M vectors could be, without a sender
OWN, OTHER, NOISE, ZEROS, NONE = "own", "other", "noise", "zeros", "none"  # what arrives
LABELS = {TEXT: "text cut to M tokens", ALIGNED: "aligned links", TRAINED: "trained links"}
LINKS = (ALIGNED, TRAINED)
WITHOUT_SENDER = {
    MEANS: "mean embeddings of M parts of the text",
    KEPT: "M positions of a text read whole",
}
MESSAGES = {
    (NOTHING, NONE): "no message",
    (NOTHING, ZEROS): "zeros",
    (TEXT, OTHER): "text of another item",
    (ALIGNED, OTHER): "aligned, of another item",
    (ALIGNED, NOISE): "aligned, noise",
    (TRAINED, OTHER): "trained, of another item",
    (TRAINED, NOISE): "trained, noise",
}
STYLES = {
    TEXT: ("#E69F00", "s"),
    ALIGNED: ("#0072B2", "o"),
    TRAINED: ("#009E73", "^"),
    MEANS: ("#999999", "x"),
    KEPT: ("#000000", "_"),
}
GOAL = 4  # the M that it is stated for

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answers:
    """Whether answers are right, of all seeds: [seeds, n, persons]."""

    right: np.ndarray
    seeds: tuple[int | None, ...] = (None,)  # of the links; None: there are none

    @property
    def share(self) -> Bound:
        """The accuracy, with its interval over messages."""
        seeds, n, persons = self.right.shape
        interval = repeated_interval(self.right.sum((0, 2)), np.full(n, seeds * persons))
        return Bound(0, n, float(self.right.mean()), interval)

    def above(self, other: Answers) -> PairedDifference:
        """The gain over another, on the same questions and of the seeds that both have.

        Answers without links are compared with those of every seed.
        """
        common = [seed for seed in self.seeds if seed in other.seeds or None in other.seeds]
        rows = [self.seeds.index(seed) for seed in common]
        others = [other.seeds.index(seed if seed in other.seeds else None) for seed in common]
        ours, theirs = self.right[rows], other.right[others]
        messages = np.broadcast_to(np.arange(ours.shape[1])[:, None], ours.shape)
        return paired_difference(
            ours.ravel().tolist(), theirs.ravel().tolist(), items=messages.ravel().tolist()
        )


def answers_of(rows: Rows, count: int, kind: str, message: str = OWN) -> Answers | None:
    """The answers of all seeds in one cell of the tables; None: it was not measured."""
    cell = [
        row
        for row in rows
        if (row["latent_steps"], row["kind"], row["message"]) == (count, kind, message)
    ]
    cell.sort(key=lambda row: row["seed"] or 0)
    found = [[[mark == "1" for mark in of] for of in row["answers"]] for row in cell]
    return Answers(np.array(found), tuple(row["seed"] for row in cell)) if found else None


def counts_of(rows: Rows) -> list[int]:
    """Every M."""
    return sorted({row["latent_steps"] for row in rows})


def figure(rows: Rows) -> Figure:
    """Accuracy against M, with 95 % intervals."""
    drawn = Figure(figsize=(6.4, 4.2), dpi=160, layout="constrained")
    axis, counts = drawn.subplots(), counts_of(rows)
    for place, (kind, label) in enumerate((LABELS | WITHOUT_SENDER).items()):
        own = {m: found.share for m in counts if (found := answers_of(rows, m, kind))}
        if own:
            colour, marker = STYLES[kind]
            draw_curve(
                axis,
                [m * (1 + 0.012 * (place - 2)) for m in own],
                [(share.accuracy, *share.interval) for share in own.values()],
                color=colour,
                marker=marker,
                linewidth=1.8 if kind in LABELS else 1.0,
                linestyle="-" if kind in LABELS else (0, (1, 2)),
                label=label,
            )
    nothing = {m: found.share for m in counts if (found := answers_of(rows, m, NOTHING, NONE))}
    if nothing:
        axis.plot(
            [*nothing],
            [100 * share.accuracy for share in nothing.values()],
            color="#777777",
            linestyle=(0, (1, 2)),
            label="no message",
        )
    label_axes(axis, counts)
    drawn.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return drawn


def page(report: Mapping[str, Any]) -> str:
    """The figure, the tables, and whether the goal is met."""
    rows, settings = report["rows"], report["settings"]
    if not rows:
        return "# What M thoughts hold, against as many tokens\n\nNothing is measured yet.\n"
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    return "\n\n".join(
        [
            "# What M thoughts hold, against as many tokens",
            "`python -m experiments.real_agents.curve` makes this page. The planner does not know "
            "the question: its message has to hold all of its facts, and the solver is asked about "
            f"each of them. {rows[0]['n']} messages of the {settings['split']} split with "
            f"{len(rows[0]['answers'][0])} questions each; links of up to {len(seeds)} seeds; "
            "intervals of 95 % over messages.",
            f"![Accuracy against M]({FIGURE})",
            curve_table(rows).to_markdown(),
            controls_table(rows).to_markdown(),
            *([bound_table(rows).to_markdown()] if bounds_of(rows) else []),
            *trained_how(rows),
            *(crossed_table(row).to_markdown() for row in crossed_rows(rows)),
            verdict(rows),
            "",
        ]
    )


def curve_table(rows: Rows) -> Table:
    """Accuracy at every M, and the gains of links over text and of training over alignment."""
    lines = []
    for count in counts_of(rows):
        own = {kind: answers_of(rows, count, kind) for kind in LABELS}
        gains = [
            ours.above(theirs) if (ours := own[a]) and (theirs := own[b]) else None
            for a, b in ((ALIGNED, TEXT), (TRAINED, TEXT), (TRAINED, ALIGNED))
        ]
        cells = [
            *(ABSENT if found is None else percent(found.share) for found in own.values()),
            *(ABSENT if gain is None else points(gain) for gain in gains),
        ]
        seeds = "/".join(str(len(of.right)) if (of := own[kind]) else "0" for kind in LINKS)
        lines.append((str(count), *cells, seeds))
    gained = ("aligned over text", "trained over text", "trained over aligned")
    return Table(
        "Right answers in %, and differences in points",
        ("M", *LABELS.values(), *gained, "seeds, aligned/trained"),
        tuple(lines),
        text_columns=0,
    )


def controls_table(rows: Rows) -> Table:
    """Right answers with what arrives in place of the message."""
    there = {(row["kind"], row["message"]) for row in rows}
    names = {key: label for key, label in MESSAGES.items() if key in there}
    lines = []
    for count in counts_of(rows):
        found = [answers_of(rows, count, *key) for key in names]
        shares = (ABSENT if of is None else f"{100 * of.share.accuracy:.1f}" for of in found)
        lines.append((str(count), *shares))
    return Table(
        "Controls: right answers in %",
        ("M", *names.values()),
        tuple(lines),
        text_columns=0,
        note="Noise has the mean and covariance of the messages at each of their places.",
    )


def bounds_of(rows: Rows) -> dict[str, str]:
    """What was measured of what M vectors could be, with labels."""
    there = {row["kind"] for row in rows}
    return {kind: label for kind, label in WITHOUT_SENDER.items() if kind in there}


def bound_table(rows: Rows) -> Table:
    """Right answers with vectors that come from the text itself."""
    labels = bounds_of(rows)
    lines = []
    for count in counts_of(rows):
        found = [answers_of(rows, count, kind) for kind in labels]
        cells = (ABSENT if of is None else percent(of.share) for of in found)
        lines.append((str(count), *cells))
    return Table(
        "What M vectors could be: right answers in %, without a sender",
        ("M", *labels.values()),
        tuple(lines),
        text_columns=0,
        note="Parts have equal numbers of words; they are tokens where M is above that. Positions "
        "are those of the last tokens of these parts; all others are hidden after the text.",
    )


def crossed_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """Of aligned and of trained links the row at their largest M whose messages are shown."""
    by_kind: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["latent_steps"]):
        if "crossed" in row:
            by_kind.setdefault(row["kind"], row)
    return [by_kind[kind] for kind in LABELS if kind in by_kind]


def crossed_table(row: Mapping[str, Any]) -> Table:
    """What crossed the edge, as the tokens nearest to each vector."""
    lines = [
        (crossed["message"], " ".join(f"`{readable(token)}`" for token in crossed["nearest"]))
        for crossed in row["crossed"]
    ]
    return Table(
        f"What crosses, {LABELS[row['kind']]}, M = {row['latent_steps']}, seed {row['seed']}: the "
        "nearest token of each vector",
        ("the message's text", "nearest tokens"),
        tuple(lines),
        text_columns=2,
    )


def readable(token: str) -> str:
    """A token inside Markdown's code in a table: its space as a dot, no bar, back quote or line."""
    shown = token.replace(" ", "·").replace("|", "¦").replace("`", "'")
    return shown if shown.isprintable() and shown else repr(token).strip("'")


def trained_how(rows: Rows) -> list[str]:
    """How the trained links were trained; nothing where there are none."""
    return [
        f"Trained links: {trial['about']} (`trials`), {trial['steps']} steps at a learning rate of "
        f"{trial['rate']:g}, from the aligned ones of the same seed."
        for trial in [row["trial"] for row in rows if "trial" in row][:1]
    ]


def verdict(rows: Rows) -> str:
    """Whether trained links at M = 4 exceed aligned links and cut text as the goal asks."""
    goal = (
        f"The goal: trained links at M = {GOAL} at least {AT_LEAST:g} points above aligned links "
        f"and above text cut to {GOAL} tokens, intervals clear of 0."
    )
    ours = answers_of(rows, GOAL, TRAINED)
    theirs = [answers_of(rows, GOAL, kind) for kind in (ALIGNED, TEXT)]
    if ours is None or None in theirs:
        return f"{goal} This was not measured."
    gains = [ours.above(of) for of in theirs if of is not None]
    is_met = all(100 * of.difference >= AT_LEAST and of.interval[0] > 0 for of in gains)
    return f"{goal} It is {'met' if is_met else 'missed'}."
