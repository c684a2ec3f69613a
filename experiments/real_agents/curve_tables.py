"""The tables of the page of `curve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.real_agents.curve_rows import (
    ALIGNED,
    FIRST,
    GOAL,
    KEPT,
    MEANS,
    NOISE,
    NONE,
    NOTHING,
    OTHER,
    TEXT,
    ZEROS,
    Rows,
    accuracy_of,
    answers_of,
    counts_of,
    gain,
    is_frozen,
    trainings_of,
)
from experiments.real_agents.skill_card import Share
from rmas_jax.reporting.results import points
from rmas_jax.reporting.table import ABSENT, Table

LABELS = {TEXT: "text cut to M tokens", ALIGNED: "aligned links"}
WITHOUT_SENDER = {
    MEANS: "mean embeddings of M parts of the text",
    FIRST: "first tokens of its first M words",
    KEPT: "M positions of a text read whole",
}


def label_of(kind: str) -> str:
    """A kind of rows in words; a training has its name."""
    return (LABELS | WITHOUT_SENDER).get(kind, f"trained, {kind}")


def curve_table(rows: Rows) -> Table:
    """Accuracy of text and of aligned links at every M, and the gain of links."""
    lines = []
    for count in counts_of(rows):
        own = [answers_of(rows, count, kind) for kind in LABELS]
        above = gain(rows, count, ALIGNED, TEXT)
        aligned = own[-1]
        lines.append(
            (
                str(count),
                *(ABSENT if found is None else str(found.accuracy) for found in own),
                ABSENT if above is None else points(above),
                "0" if aligned is None else str(len(aligned.right)),
            )
        )
    return Table(
        "Right answers in %, and differences in points",
        ("M", *LABELS.values(), "aligned over text", "seeds"),
        tuple(lines),
        text_columns=0,
    )


def trained_table(rows: Rows) -> Table:
    """Accuracy of trained links, and their gains over aligned links and over text."""
    lines = []
    for name, trial in trainings_of(rows).items():
        for count in counts_of(rows):
            if (own := answers_of(rows, count, name)) is None:
                continue
            above = [gain(rows, count, name, other) for other in (ALIGNED, TEXT)]
            lines.append(
                (
                    name,
                    "yes" if is_frozen(trial) else "no",
                    str(count),
                    str(own.accuracy),
                    *(ABSENT if of is None else points(of) for of in above),
                    str(len(own.right)),
                )
            )
    return Table(
        "Trained links: right answers in %, and gains in points",
        ("training", "frozen sender", "M", "right", "over aligned links", "over text", "seeds"),
        tuple(lines),
        text_columns=2,
    )


def controls_table(rows: Rows) -> Table:
    """Right answers with what arrives in place of the message."""
    names = {
        (NOTHING, NONE): "no message",
        (NOTHING, ZEROS): "zeros",
        (TEXT, OTHER): "text of another item",
    }
    for kind in (ALIGNED, *trainings_of(rows)):
        label = ALIGNED if kind == ALIGNED else label_of(kind)
        names |= {(kind, OTHER): f"{label}, of another item", (kind, NOISE): f"{label}, noise"}
    there = {(row["kind"], row["message"]) for row in rows}
    names = {key: label for key, label in names.items() if key in there}
    lines = []
    for count in counts_of(rows):
        found = [answers_of(rows, count, *key) for key in names]
        lines.append((str(count), *(ABSENT if of is None else str(of.accuracy) for of in found)))
    return Table(
        "Controls: right answers in %",
        ("M", *names.values()),
        tuple(lines),
        text_columns=0,
        note="Noise has the mean and covariance of the messages at each of their places.",
    )


def without_sender_table(rows: Rows) -> Table:
    """Right answers with vectors that come from the text itself."""
    lines = []
    for count in counts_of(rows):
        found = [answers_of(rows, count, kind) for kind in WITHOUT_SENDER]
        lines.append((str(count), *(ABSENT if of is None else str(of.accuracy) for of in found)))
    return Table(
        "What M vectors could be: right answers in %, without a sender",
        ("M", *WITHOUT_SENDER.values()),
        tuple(lines),
        text_columns=0,
        note="Parts have equal numbers of words; they are tokens where M is above that. Positions "
        "are those of the last tokens of these parts; all others are hidden after the text.",
    )


def crossed_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """Of aligned links the row at the largest M, of each training that at the goal's M, if any."""

    def order(row: Mapping[str, Any]) -> tuple[bool, int]:
        count = row["latent_steps"]
        return row["kind"] == ALIGNED or count != GOAL, -count

    by_kind: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=order):
        if "crossed" in row:
            by_kind.setdefault(row["kind"], row)
    return [by_kind[kind] for kind in (ALIGNED, *trainings_of(rows)) if kind in by_kind]


def crossed_table(row: Mapping[str, Any]) -> Table:
    """What crossed the edge, as the tokens nearest to each vector."""
    lines = [
        (crossed["message"], " ".join(f"`{readable(token)}`" for token in crossed["nearest"]))
        for crossed in row["crossed"]
    ]
    return Table(
        f"What crosses, {label_of(row['kind'])}, M = {row['latent_steps']}, seed {row['seed']}: "
        "the nearest token of each vector",
        ("the message's text", "nearest tokens"),
        tuple(lines),
        text_columns=2,
    )


def readable(token: str) -> str:
    """A token inside Markdown's code in a table: its space as a dot, no bar, back quote or line."""
    shown = token.replace(" ", "·").replace("|", "¦").replace("`", "'")
    return shown if shown.isprintable() and shown else repr(token).strip("'")


def bound_table(rows: Rows) -> Table:
    """Right answers with vectors that no planner made: rows of `free_vectors`."""
    return Table(
        "Vectors fitted to each item: right answers in % under codes they were not fitted to",
        ("M", "right", "items"),
        tuple((str(row["latent_steps"]), str(accuracy_of(row)), f"{row['n']:,}") for row in rows),
        text_columns=0,
        note="No sender, no links: what the frozen solver can read out of M vectors, at least. "
        "Items of the validation split; intervals over items.",
    )


def probe_table(rows: Rows) -> Table:
    """How often a linear probe finds each entity of the message in the planner's thoughts."""
    entities = list(dict.fromkeys((row["pair"], row["entity"]) for row in rows))
    lines: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for row in rows:
        low, high = (f"{100 * end:.0f}" for end in row["interval"])
        cell = f"{100 * row['share']:.0f} [{low}, {high}]"
        key = (str(row["seed"]), row["thoughts"])
        lines.setdefault(key, {})[row["pair"], row["entity"]] = cell
    return Table(
        f"A linear probe of the planner's thoughts, M = {rows[0]['latent_steps']}: items in %, in "
        "which the message's own entity is the nearest",
        ("seed of the links", "thoughts", *(f"{entity} {pair + 1}" for pair, entity in entities)),
        tuple((*key, *(cells[entity] for entity in entities)) for key, cells in lines.items()),
        text_columns=2,
        note=f"By chance {100 * rows[0]['chance']:.0f} %; entities of test, of {rows[0]['n']:,} "
        "items.",
    )


def trials_table(report: Mapping[str, Any]) -> Table:
    """What was tried to press more into the thoughts, and how far each came."""
    settings, rows = report["settings"], report["rows"].values()
    lines = [
        (
            row["about"],
            str(accuracy_of(row)),
            f"{100 * row['other']:.1f}" if "other" in row else ABSENT,
            f"{100 * row['train']:.1f}" if "train" in row else ABSENT,
            f"{row['parameters']:,}" if "parameters" in row else ABSENT,
            f"{row['seconds'] / 60:.1f}" if row.get("parameters") else ABSENT,
        )
        for row in rows
    ]
    return Table(
        f"Trials with M = {settings['count']}, seed {settings['seed']}: right answers in % on "
        "validation entities",
        ("training", "right", "another item's message", "of training", "parameters", "minutes"),
        tuple(lines),
        text_columns=1,
        note=f"All questions about each of {next(iter(rows))['n']:,} messages; intervals of 95 % "
        "over messages. `python -m experiments.real_agents.trials`.",
    )


def skills_table(skills: Mapping[str, Mapping[str, Any]]) -> Table:
    """How well each agent does its own part, before and after its tuning."""
    lines: Sequence[tuple[str, ...]] = [
        (
            role,
            skill["source"],
            *(str(Share(skill[of]["exact"], skill[of]["n"])) for of in ("downloaded", "tuned")),
            f"{skill['steps']} steps of {skill['batch_size']}",
        )
        for role, skill in skills.items()
    ]
    return Table(
        "Each agent on its own part: exact texts of validation",
        ("role", "tuned from", "before", "after", "tuning"),
        tuple(lines),
        text_columns=5,
        note="An agent is tuned on its role's own part alone, and frozen then.",
    )
