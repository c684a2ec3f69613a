"""Figures of a run. Each function takes results or rows and returns a Figure.

Figures are made without pyplot, so they need no display and keep no global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.metrics import Interval
from rmas_jax.evaluation.rows import ItemRow
from rmas_jax.reporting.results import (
    Correctness,
    Result,
    Results,
    Split,
    accuracy_interval,
    count_rounds,
    split_of,
)
from rmas_jax.reporting.run_directory import GradientRow, MetricRow

PANEL_WIDTH, PANEL_HEIGHT = 3.8, 2.9  # inches
PANELS_PER_ROW = 4
TITLE_SIZE = 10  # points
DODGE = 0.045  # rounds between the markers of two methods, so that intervals do not overlap
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
SERIES_MARKERS, SERIES_LINES = "o^sDvPX", ("-", "--", "-.", ":")


def accuracy_figure(results: Results) -> Figure:
    """Accuracy against rounds, a panel per split; bars are 95 % Wilson intervals.

    Of the single agents only the best is drawn, as a baseline.
    """
    curves = [method for method in results.methods if not method.startswith(methods.SINGLE)]
    figure, axes = _panels(len(results.splits), width=4.6, height=3.6)
    for axis, split in zip(axes, results.splits, strict=True):
        for position, method in enumerate(curves):
            shift = DODGE * (position - (len(curves) - 1) / 2)
            _draw_accuracy(axis, list(results.over_rounds(split, method).values()), method, shift)
        single = results.best_single(split)
        if single:
            style = methods.describe(single.method)
            axis.axhline(
                100 * single.accuracy,
                color=style.colour,
                linestyle=style.line,
                linewidth=1.2,
                zorder=1,
                label="best single agent",
            )
        axis.set_title(str(split), fontsize=TITLE_SIZE)
        _percent_axis(axis)
        _rounds_axis(axis, results.rounds(split))
    _label(figure, axes, "correct, %")
    return figure


def cost_figure(results: Results) -> Figure:
    """Generated tokens, sequential steps and wall time per item against rounds, over all splits."""
    panels = {
        "tokens": "generated tokens per item",
        "steps": "sequential steps per item",
        "seconds": "seconds per item",
    }
    drawn = (methods.LATENT, methods.TEXT, methods.TRUNCATED)
    figure, axes = _panels(len(panels), width=3.4)
    rounds = sorted({r for split in results.splits for r in results.rounds(split)})
    for axis, (quantity, title) in zip(axes, panels.items(), strict=True):
        for method in drawn:
            curve = _mean_over_splits(results, method, quantity)
            if curve:
                axis.plot(list(curve), list(curve.values()), **_line(method))
        axis.set_title(title, fontsize=TITLE_SIZE)
        axis.set_ylim(bottom=0)
        _rounds_axis(axis, rounds)
    _label(figure, axes, "")
    return figure


def difficulty_figure(items: Sequence[ItemRow]) -> Figure:
    """Accuracy against the difficulty, latent and text; splits by rows, rounds by columns."""
    answers: dict[tuple[Split, int, str, int], Correctness] = {}
    for item in items:
        if item["method"] in (methods.LATENT, methods.TEXT):
            key = (split_of(item), item["rounds"], item["method"], item["difficulty"])
            answers.setdefault(key, {})[item["seed"], item["id"]] = item["correct"]
    splits = list(dict.fromkeys(key[0] for key in answers))
    rounds = sorted({key[1] for key in answers})
    levels = sorted({key[3] for key in answers})
    figure = _figure(2.5 * max(len(rounds), 2) + 0.4, 2.3 * len(splits) + 0.7)
    grid = figure.subplots(len(splits), len(rounds), squeeze=False, sharex=True, sharey=True)
    for row, split in zip(grid, splits, strict=True):
        for axis, number in zip(row, rounds, strict=True):
            for position, method in enumerate((methods.LATENT, methods.TEXT)):
                here = [level for level in levels if (split, number, method, level) in answers]
                cells = [answers[split, number, method, level] for level in here]
                if here:
                    x = np.array(here) + (position - 0.5) * 0.12
                    estimates = [(sum(c.values()) / len(c), accuracy_interval(c)) for c in cells]
                    _draw_intervals(axis, x, estimates, method)
            _plain(axis)
            _percent_axis(axis)
            axis.set_xticks(levels)
            axis.set_title(f"{split}, {count_rounds(number)}", fontsize=TITLE_SIZE)
    for axis in grid[-1]:
        axis.set_xlabel("difficulty")
    for row in grid:
        row[0].set_ylabel("correct, %")
    _legend(figure, grid.flat)
    return figure


def gradient_figure(gradients: Sequence[GradientRow]) -> Figure:
    """Gradient norm (log scale) of each link against the round it acts in, for each channel.

    A norm of exactly zero, which a log scale lacks, is marked at the bottom edge.
    """
    links = list(dict.fromkeys(row["link"] for row in gradients))
    figure, axes = _panels(len(links), width=2.9, share_y=True)
    for axis, link in zip(axes, links, strict=True):
        for position, channel in enumerate(dict.fromkeys(row["channel"] for row in gradients)):
            colour, marker, line = (
                styles[position % len(styles)]
                for styles in (SERIES_COLOURS, SERIES_MARKERS, SERIES_LINES)
            )
            points = sorted(
                (row["round"], row["norm"])
                for row in gradients
                if row["link"] == link and row["channel"] == channel
            )
            positive = [(x, norm) for x, norm in points if norm > 0 and math.isfinite(norm)]
            axis.plot(
                [x for x, _ in positive],
                [norm for _, norm in positive],
                color=colour,
                marker=marker,
                linestyle=line,
                markersize=5,
                label=f"{channel} channel",
            )
            zeros = [x for x, norm in points if norm == 0]
            if zeros:
                axis.plot(
                    zeros,
                    [0.03] * len(zeros),
                    transform=axis.get_xaxis_transform(),  # y in shares of the axis height
                    color=colour,
                    marker=marker,
                    fillstyle="none",
                    linestyle="none",
                    label=f"{channel} channel, exactly 0",
                )
        axis.set_yscale("log")
        axis.set_title(link.replace("->", " → "), fontsize=TITLE_SIZE)
        _rounds_axis(axis, sorted({row["round"] for row in gradients}), "round")
    _label(figure, axes, "gradient norm")
    return figure


def training_figure(metrics: Sequence[MetricRow]) -> Figure:
    """Training curves: a panel per loop for the loss, and for the accuracy if logged.

    Long curves are faint, with their running mean on top.
    """
    loops = list(dict.fromkeys(row["loop"] for row in metrics))
    columns: tuple[Literal["loss", "accuracy"], ...] = ("loss", "accuracy")
    panels = [
        (loop, column)
        for loop in loops
        for column in columns
        if any(row["loop"] == loop and row.get(column) is not None for row in metrics)
    ]
    figure, axes = _panels(len(panels))
    for axis, (loop, column) in zip(axes, panels, strict=True):
        rows = [r for r in metrics if r["loop"] == loop and r.get(column) is not None]
        for position, series in enumerate(dict.fromkeys(row["series"] for row in rows)):
            colour = SERIES_COLOURS[position % len(SERIES_COLOURS)]
            own = [row for row in rows if row["series"] == series]
            for seed in dict.fromkeys(row.get("seed") for row in own):
                points = {row["step"]: row[column] for row in own if row.get("seed") == seed}
                _draw_curve(axis, points, colour, series)
        values = [row[column] for row in rows if math.isfinite(row[column])]
        if column == "loss" and values and min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
        axis.set_title(f"{loop} loop: {column}", fontsize=TITLE_SIZE)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.legend(frameon=False, fontsize=8)
    return figure


def _draw_accuracy(axis: Axes, curve: list[Result], method: str, shift: float) -> None:
    if curve:
        x = np.array([result.rounds for result in curve]) + shift
        _draw_intervals(axis, x, [(result.accuracy, result.interval) for result in curve], method)


def _draw_intervals(
    axis: Axes, x: np.ndarray, estimates: list[tuple[float, Interval]], method: str
) -> None:
    """A curve of accuracies in percent with bars; `estimates` are (accuracy, interval)."""
    centre = np.array([accuracy for accuracy, _ in estimates])
    low, high = np.array([interval for _, interval in estimates]).T
    axis.errorbar(
        x,
        100 * centre,
        # Rounding can move an end past the centre, which errorbar refuses.
        yerr=100 * np.maximum([centre - low, high - centre], 0),
        elinewidth=1,
        capsize=2,
        **_line(method),
    )


def _draw_curve(axis: Axes, points: dict[int, float], colour: str, label: str) -> None:
    steps = sorted(points)
    values = np.array([points[step] for step in steps], float)
    window = len(steps) // 40
    if window < 2:
        axis.plot(steps, values, color=colour, linewidth=1.5, label=label)
        return
    axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    axis.plot(steps[window - 1 :], mean, color=colour, linewidth=1.6, label=label)


def _mean_over_splits(results: Results, method: str, quantity: str) -> dict[int, float]:
    """Rounds -> mean cost per item over all splits."""
    totals: dict[int, tuple[float, int]] = {}
    for split in results.splits:
        for rounds, result in results.over_rounds(split, method).items():
            cost, n = totals.get(rounds, (0.0, 0))
            totals[rounds] = (cost + getattr(result, quantity) * result.n, n + result.n)
    return {rounds: totals[rounds][0] / totals[rounds][1] for rounds in sorted(totals)}


def _line(method: str) -> dict:
    style = methods.describe(method)
    return {
        "color": style.colour,
        "marker": style.marker,
        "linestyle": style.line,
        "linewidth": 1.8 if method in (methods.LATENT, methods.TEXT) else 1.2,
        "markersize": 5,
        "zorder": 3 if method in (methods.LATENT, methods.TEXT) else 2,
        "label": style.label,
    }


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=160, layout="constrained")


def _panels(
    count: int,
    *,
    width: float = PANEL_WIDTH,
    height: float = PANEL_HEIGHT,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of at most four."""
    columns = min(count, PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    figure = _figure(width * max(columns, 2), height * rows + 0.4)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        _plain(axis)
    return figure, axes[:count]


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)


def _percent_axis(axis: Axes) -> None:
    axis.set_ylim(-3, 103)
    axis.set_yticks(range(0, 101, 20))


def _rounds_axis(axis: Axes, rounds: list[int], label: str = "rounds") -> None:
    axis.set_xticks(rounds)
    axis.set_xlim(rounds[0] - 0.35, rounds[-1] + 0.35)
    axis.set_xlabel(label)


def _label(figure: Figure, axes: Sequence[Axes], y_label: str) -> None:
    axes[0].set_ylabel(y_label)
    _legend(figure, axes)


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend below all panels, each label once; methods in their usual order."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    known = [method.label for method in methods.METHODS.values()]
    labels = sorted(handles, key=lambda label: known.index(label) if label in known else len(known))
    if labels:
        figure.legend(
            [handles[label] for label in labels],
            labels,
            loc="outside lower center",
            ncols=min(len(labels), 4),
            frameon=False,
            fontsize=9,
        )
