"""The page of the capacity curve: its figure, its tables, and whether its goal is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.real_agents.skill_card import Share
from rmas_jax.evaluation.methods import (
    ALIGNED,
    LATENT,
    NO_LATENTS,
    SHUFFLED,
    SHUFFLED_TEXT,
    TEXT,
    TRUNCATED,
    describe,
)
from rmas_jax.evaluation.metrics import PairedDifference
from rmas_jax.reporting.audit import MEANINGS, AuditRecord
from rmas_jax.reporting.results import Result, Results, points
from rmas_jax.reporting.table import ABSENT, Table

CURVES = (LATENT, ALIGNED, TRUNCATED)  # that depend on M
CONTROLS = (TEXT, SHUFFLED_TEXT, NO_LATENTS, SHUFFLED)
FIGURE = "capacity.png"
AT_LEAST = 10.0  # points that the goal asks of the trained links above both others


class Bound(NamedTuple):
    """Right answers with M vectors that were fitted to each item."""

    latent_steps: int
    n: int
    accuracy: float
    interval: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Study:
    """What the page shows, by M."""

    pooled: Mapping[int, Results]  # over seeds
    audits: Mapping[int, Sequence[AuditRecord]] = dataclasses.field(default_factory=dict)
    bound: Sequence[Bound] = ()
    probe: Sequence[Mapping[str, Any]] = ()  # rows of `probe`
    trials: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the report of `trials`
    skills: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # by role

    @property
    def counts(self) -> list[int]:
        """Every M that the figure shows."""
        return sorted({*self.pooled, *(row.latent_steps for row in self.bound)})


def at(results: Results, method: str) -> Result | None:
    """A method's result on the first split, at its largest number of rounds."""
    over = results.over_rounds(results.splits[0], method)
    return over[max(over)] if over else None


def figure(study: Study) -> Figure:
    """Accuracy against M, with 95 % intervals."""
    drawn = Figure(figsize=(6.4, 4.6), dpi=160, layout="constrained")
    axis = drawn.subplots()
    for place, method in enumerate((*CURVES, *CONTROLS)):
        style, of_all = describe(method), {m: at(of, method) for m, of in study.pooled.items()}
        own = {m: result for m, result in of_all.items() if result is not None}
        if own:
            draw_curve(
                axis,
                [m * (1 + 0.012 * (place - 3)) for m in own],
                [(result.accuracy, *result.interval) for result in own.values()],
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                linewidth=1.8 if method in CURVES else 1.0,
                label=style.label,
            )
    if study.bound:
        draw_curve(
            axis,
            [row.latent_steps for row in study.bound],
            [(row.accuracy, *row.interval) for row in study.bound],
            color="#000000",
            marker="_",
            linestyle=(0, (1, 2)),
            linewidth=1.0,
            label="vectors fitted to each item",
        )
    label_axes(axis, study.counts)
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return drawn


def label_axes(axis: Axes, counts: Sequence[int]) -> None:
    """Axes of an accuracy against M."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(m) for m in counts])
    axis.minorticks_off()
    axis.set_xlabel("M: latent steps of a message, or tokens of a cut one")
    axis.set_ylabel("correct, %")
    axis.set_ylim(-3, 103)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.7)


def draw_curve(
    axis: Axes, places: Sequence[float], shares: Sequence[tuple[float, ...]], **style: Any
) -> None:
    """Draws shares, each with the ends of its interval, in percent."""
    centre, low, high = (100 * np.asarray(of) for of in zip(*shares, strict=True))
    ends = np.maximum(0, [centre - low, high - centre])
    axis.errorbar(places, centre, yerr=ends, markersize=5, elinewidth=1, capsize=2, **style)


def page(study: Study) -> str:
    """The figure, the tables, and whether the goal is met."""
    tables = [
        *([curve_table(study.pooled)] if study.pooled else []),
        *([controls_table(study.audits)] if study.audits else []),
        *([bound_table(study.bound)] if study.bound else []),
        *([probe_table(study.probe)] if study.probe else []),
        *([trials_table(study.trials)] if study.trials else []),
        *([skills_table(study.skills)] if study.skills else []),
    ]
    return "\n\n".join(
        [
            "# What M thoughts hold, against as many tokens",
            "`python -m experiments.real_agents.capacity` makes this page. The planner does not "
            "know the question: its message has to hold all of its facts, and the solver is asked "
            f"about one of them. {sizes(study.pooled)}",
            *([f"![Accuracy against M]({FIGURE})"] if study.counts else []),
            *(table.to_markdown() for table in tables),
            verdict(study.pooled),
            "",
        ]
    )


def sizes(pooled: Mapping[int, Results]) -> str:
    """How many answers, and which seeds."""
    if not pooled:
        return "No run of the curve is finished."
    results = next(iter(pooled.values()))
    example = at(results, LATENT) or results.all[0]
    seeds = ", ".join(map(str, example.seeds))
    return f"{example.n:,} answers (seeds {seeds}); intervals of 95 % over questions."


def curve_table(pooled: Mapping[int, Results]) -> Table:
    """Accuracy of every method at every M, and the gain of trained links over the others."""
    lines = []
    for count, results in pooled.items():
        found = {method: at(results, method) for method in (*CURVES, *CONTROLS)}
        gains = [gain(results, method) for method in (ALIGNED, TRUNCATED)]
        cells = [
            *(ABSENT if result is None else percent(result) for result in found.values()),
            *(ABSENT if pair is None else points(pair) for pair in gains),
        ]
        lines.append((str(count), *cells))
    labels = [describe(method).label for method in (*CURVES, *CONTROLS)]
    return Table(
        "Right answers in %, and the gain of trained links in points",
        ("M", *labels, "over aligned links", "over cut text"),
        tuple(lines),
        text_columns=0,
    )


def controls_table(audits: Mapping[int, Sequence[AuditRecord]]) -> Table:
    """Right answers with the trained links' messages and with others in their place."""
    names = list(
        dict.fromkeys(
            row["method"] for records in audits.values() for of in records for row in of.rows
        )
    )
    # Draws of other items are other.0, other.1, ...
    meanings = [f"{name}: {MEANINGS[name.partition('.')[0]]}" for name in names]
    lines = []
    for count, records in audits.items():
        items = [item for record in records for item in record.items]
        shares = [[item["correct"] for item in items if item["method"] == name] for name in names]
        lines.append(
            (str(count), *(f"{100 * fmean(own):.1f}" if own else ABSENT for own in shares))
        )
    return Table(
        "Trained links: right answers in % by what arrives in place of the message",
        ("M", *names),
        tuple(lines),
        text_columns=0,
        note=f"{'; '.join(meanings)}.",
    )


def bound_table(bound: Sequence[Bound]) -> Table:
    """Right answers with vectors that no planner made."""
    return Table(
        "Vectors fitted to each item: right answers in % under codes they were not fitted to",
        ("M", "right", "n"),
        tuple((str(row.latent_steps), percent(row), f"{row.n:,}") for row in bound),
        text_columns=0,
        note="No sender, no links: what the frozen solver can read out of M vectors.",
    )


def probe_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How often a linear probe finds each entity of the message in the planner's thoughts."""
    entities = list(dict.fromkeys((row["pair"], row["entity"]) for row in rows))
    lines: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for row in rows:
        low, high = (f"{100 * end:.0f}" for end in row["interval"])
        cell = f"{100 * row['share']:.0f} [{low}, {high}]"
        lines.setdefault((row["links"], row["thoughts"]), {})[row["pair"], row["entity"]] = cell
    return Table(
        f"A linear probe of the planner's thoughts, M = {rows[0]['latent_steps']}: items in %, in "
        "which the message's own entity is the nearest",
        ("links", "thoughts", *(f"{entity} {pair + 1}" for pair, entity in entities)),
        tuple((*key, *(cells[entity] for entity in entities)) for key, cells in lines.items()),
        text_columns=2,
        note=f"By chance {100 * rows[0]['chance']:.0f} %; entities of test, of {rows[0]['n']:,} "
        "items.",
    )


def trials_table(report: Mapping[str, Any]) -> Table:
    """What was tried to press more into the thoughts, and how far each came."""
    count, seed = report["settings"]["count"], report["settings"]["seed"]
    lines = [
        (
            row["about"],
            percent(Bound(count, row["n"], row["accuracy"], row["interval"])),
            f"{100 * row['other']:.1f}" if "other" in row else ABSENT,
            f"{100 * row['train']:.1f}" if "train" in row else ABSENT,
            f"{row['parameters']:,}" if "parameters" in row else ABSENT,
            f"{row['seconds'] / 60:.1f}" if row.get("parameters") else ABSENT,
        )
        for row in report["rows"].values()
    ]
    return Table(
        f"Trials with M = {count}, seed {seed}: right answers in % on validation entities",
        ("training", "right", "another item's message", "of training", "parameters", "minutes"),
        tuple(lines),
        text_columns=1,
        note=f"All questions about each of {next(iter(report['rows'].values()))['n']:,} messages; "
        "intervals of 95 % over messages. `python -m experiments.real_agents.trials`.",
    )


def skills_table(skills: Mapping[str, Mapping[str, Any]]) -> Table:
    """How well each agent does its own part, before and after its tuning."""
    lines = [
        (
            role,
            skill["source"],
            *(Share(skill[of]["exact"], skill[of]["n"]) for of in ("downloaded", "tuned")),
            f"{skill['steps']} steps of {skill['batch_size']}",
        )
        for role, skill in skills.items()
    ]
    return Table(
        "Each agent on its own part: exact texts of validation",
        ("role", "tuned from", "before", "after", "tuning"),
        tuple(tuple(map(str, line)) for line in lines),
        text_columns=5,
        note="An agent is tuned on its role's own part alone, and frozen then.",
    )


def gain(results: Results, other: str) -> PairedDifference | None:
    """Trained links minus another method, on the same questions."""
    ours, theirs = at(results, LATENT), at(results, other)
    return results.compare(ours, theirs) if ours and theirs else None


def verdict(pooled: Mapping[int, Results]) -> str:
    """Whether trained links at M = 4 exceed aligned links and cut text as the goal asks."""
    if 4 not in pooled:
        return "The goal is stated for M = 4, which was not measured."
    gains = [gain(pooled[4], method) for method in (ALIGNED, TRUNCATED)]
    is_met = all(
        pair is not None and 100 * pair.difference >= AT_LEAST and pair.interval[0] > 0
        for pair in gains
    )
    return (
        f"The goal: trained links at M = 4 at least {AT_LEAST:g} points above aligned links and "
        f"above text cut to 4 tokens, intervals clear of 0. It is {'met' if is_met else 'missed'}."
    )


def percent(result: Result | Bound) -> str:
    """An accuracy in percent with its interval."""
    low, high = result.interval
    return f"{100 * result.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
