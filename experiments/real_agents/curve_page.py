"""The page of `curve`: its figure, its tables, and whether the goal is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.real_agents.curve_rows import (
    ALIGNED,
    FIRST,
    GOAL,
    KEPT,
    MEANS,
    NONE,
    NOTHING,
    TEXT,
    Accuracy,
    Rows,
    accuracy_of,
    answers_of,
    counts_of,
    gain,
    is_frozen,
    trainings_of,
)
from experiments.real_agents.curve_tables import (
    WITHOUT_SENDER,
    bound_table,
    controls_table,
    crossed_rows,
    crossed_table,
    curve_table,
    label_of,
    probe_table,
    skills_table,
    trained_table,
    trials_table,
    without_sender_table,
)
from rmas_jax.reporting.table import Table

FIGURE = "curve.png"
STYLES = {
    TEXT: ("#E69F00", "s"),
    ALIGNED: ("#0072B2", "o"),
    MEANS: ("#999999", "x"),
    FIRST: ("#56B4E9", "+"),
    KEPT: ("#000000", "_"),
}
FITTED_STYLE = ("#8C564B", "*")  # vectors of each item
TRAINED_STYLES = (("#009E73", "^"), ("#CC79A7", "v"), ("#D55E00", "D"), ("#F0C400", "P"))
FAINT: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (1, 2))}  # without a sender
AT_LEAST = 10.0  # points of the goal: trained links above both others


class Beside(NamedTuple):
    """Reports that lie beside that of the curve."""

    bound: Rows = ()  # of `free_vectors`
    probe: Rows = ()  # of `probe`
    trials: Mapping[str, Any] | None = None  # all of that of `trials`


def figure(rows: Rows, bound: Rows = ()) -> Figure:
    """Accuracy against M, with 95 % intervals."""
    drawn = Figure(figsize=(6.4, 4.6), dpi=160, layout="constrained")
    axis, counts = drawn.subplots(), counts_of(rows)
    styles = STYLES | dict(zip(trainings_of(rows), TRAINED_STYLES, strict=False))
    for place, (kind, (colour, marker)) in enumerate(styles.items()):
        draw_curve(
            axis,
            {
                m * (1 + 0.012 * (place - 2)): found.accuracy
                for m in counts
                if (found := answers_of(rows, m, kind))
            },
            color=colour,
            marker=marker,
            label=label_of(kind),
            **(FAINT if kind in WITHOUT_SENDER else {"linewidth": 1.8}),
        )
    fitted = {row["latent_steps"]: accuracy_of(row) for row in bound}
    label = "vectors fitted to each item"
    colour, marker = FITTED_STYLE
    draw_curve(axis, fitted, color=colour, marker=marker, label=label, **FAINT)
    nothing = {m: found for m in counts if (found := answers_of(rows, m, NOTHING, NONE))}
    if nothing:
        shares = [100 * found.accuracy.value for found in nothing.values()]
        axis.plot([*nothing], shares, color="#777777", label="no message", **FAINT)
    label_axes(axis, sorted({*counts, *fitted}))
    drawn.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
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


def draw_curve(axis: Axes, shares: Mapping[float, Accuracy], **style: Any) -> None:
    """Draws shares by place, each with the ends of its interval, in percent; nothing if none."""
    if not shares:
        return
    points = [(share.value, *share.interval) for share in shares.values()]
    centre, low, high = 100 * np.array(points).T
    ends = np.maximum(0, [centre - low, high - centre])
    axis.errorbar([*shares], centre, yerr=ends, markersize=5, elinewidth=1, capsize=2, **style)


def page(report: Mapping[str, Any], beside: Beside) -> str:
    """The figure, the tables, and whether the goal is met.

    Args:
      report: of `curve`; it has rows.
      beside: what was measured beside it.
    """
    rows = report["rows"]
    parts = [
        "# What M thoughts hold, against as many tokens",
        about(report),
        f"![Accuracy against M]({FIGURE})",
        *(table.to_markdown() for table in tables(rows)),
        *trained_how(rows),
        *(table.to_markdown() for table in tables_beside(report, beside)),
        *(crossed_table(row).to_markdown() for row in crossed_rows(rows)),
        verdict(rows),
    ]
    return "\n\n".join(parts) + "\n"


def about(report: Mapping[str, Any]) -> str:
    """How many answers of what, and of how many seeds."""
    rows, split = report["rows"], report["settings"]["split"]
    seeds = {row["seed"] for row in rows if row["seed"] is not None}
    return (
        "`python -m experiments.real_agents.curve` makes this page. The planner does not know the "
        "question: its message has to hold all of its facts, and the solver is asked about each of "
        f"them. {rows[0]['n']} messages of the {split} split with {len(rows[0]['answers'][0])} "
        f"questions each; links of up to {len(seeds)} seeds; intervals of 95 % over messages."
    )


def tables(rows: Rows) -> list[Table]:
    """Those of the report itself."""
    kinds = {row["kind"] for row in rows}
    return [
        curve_table(rows),
        *([trained_table(rows)] if trainings_of(rows) else []),
        controls_table(rows),
        *([without_sender_table(rows)] if kinds & {*WITHOUT_SENDER} else []),
    ]


def tables_beside(report: Mapping[str, Any], beside: Beside) -> list[Table]:
    """Those of the agents' skills, and of the reports beside."""
    skills = report.get("skills")
    return [
        *([bound_table(beside.bound)] if beside.bound else []),
        *([probe_table(beside.probe)] if beside.probe else []),
        *([trials_table(beside.trials)] if beside.trials else []),
        *([skills_table(skills)] if skills else []),
    ]


def trained_how(rows: Rows) -> list[str]:
    """How each training made its links; nothing where there are none."""
    lines = [
        f"* `{name}`: {trial['about']}; {trial['steps']} steps "
        f"{'for each M ' if trial['path'] else ''}at a learning rate of {trial['rate']:g}, from "
        "the aligned links of the same seed."
        + ("" if trial["loss"] != "words" else " The receiver has no part in the loss.")
        + ("" if is_frozen(trial) else " **The sender is no longer frozen.**")
        for name, trial in trainings_of(rows).items()
    ]
    return ["Trainings (of `trials`):\n\n" + "\n".join(lines)] if lines else []


def verdict(rows: Rows) -> str:
    """Whether links trained at M = 4 exceed aligned links and cut text as the goal asks.

    Trainings that do not leave the sender frozen cannot meet it.
    """
    goal = (
        f"The goal: links trained at M = {GOAL}, with a frozen sender, at least {AT_LEAST:g} "
        f"points above aligned links and above text cut to {GOAL} tokens, intervals clear of 0."
    )
    reached = {True: dict[str, bool](), False: dict[str, bool]()}  # by whether the sender is frozen
    for name, trial in trainings_of(rows).items():
        gains = [gain(rows, GOAL, name, other) for other in (ALIGNED, TEXT)]
        if None not in gains:
            reached[is_frozen(trial)][name] = all(
                100 * of.difference >= AT_LEAST and of.interval[0] > 0
                for of in gains
                if of is not None
            )
    frozen, others = reached[True], reached[False]
    if not frozen:
        said = "This was not measured."
    else:
        met = [name for name, is_met in frozen.items() if is_met]
        said = f"It is met by {', '.join(met)}" if met else "It is missed"
        said += f", of {len(frozen)} trainings." if len(frozen) > 1 else "."
    if others:
        met = [name for name, is_met in others.items() if is_met]
        said += f" With a sender that is no longer frozen, {', '.join(met) or 'none'} reaches it."
    return f"{goal} {said}"
