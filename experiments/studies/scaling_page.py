"""The page of the scaling study: tables, checks and figures of its results."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rmas_jax.planning.chips import price_list
from rmas_jax.reporting.figures import SERIES_COLOURS, SERIES_MARKERS

GIBIBYTE = 2**30
WORDS = {
    "teacher_forced": "a training step, teacher-forced",
    "on_policy": "a training step, on-policy",
    "answers": "answers: rounds and text",
}
HEADER = (
    "| slice | items | GiB a chip | temporaries | compute ms | HBM ms | links ms | links GB "
    "| estimate ms | bound by | x bound | items/s | weak efficiency | $ per 1,000 | code |"
)
Row = Mapping[str, Any]


def page(rows: Sequence[Row], missing: Sequence[Any]) -> str:
    """The page as Markdown.

    Args:
      rows: of the results.
      missing: points that are not among them.
    """
    prices = price_list()
    lines = [
        "# Scaling on TPUs, estimated from compiled programs",
        "",
        "**Nothing has run on a TPU.** Every program of a released system was compiled by TPU's "
        "compiler, up to its machine code, for a slice that was not at hand, from the sizes of its "
        "published decoders. "
        "FLOPs, bytes and collectives are counted in the compiled program, with the trip counts of "
        "its loops, and divided by the chip's data-sheet rates; the longest of these times is the "
        "estimate. A real step takes longer. [Plan a run](../how-to/plan.md) says how each number "
        "is made.",
        "",
        "Prompts have 512 tokens before the slots and 64 in every round, texts 512. Items are "
        "split over all chips, weights over 16 of them (`fsdp`; further ones hold copies), with "
        "the default policies. Where a chip has room for a system's layers (`sequential_light` on "
        "all chips, all systems on v5p), training gathers them once a step and stores rollouts of "
        "up to four items a chip, and reading gathers them once for all rounds. Weak scaling has "
        "one item a chip, strong scaling 256 "
        "items. Weak efficiency is items per second and chip, relative to the smallest slice "
        "with as many items a chip. Memory is that of the largest program, with an "
        "allowance for machine code; times are sums over "
        "a point's programs, and `bound by` is of the longest. `code` is "
        "the commit whose programs were compiled: compare rows of one commit. "
        f"Prices are of {prices['date']}: {prices['source']}.",
        "",
        "`python -m experiments.studies.scaling --out docs/scaling` makes this page and resumes "
        f"where it stopped. {len(rows)} points are here, {len(missing)} are missing.",
        *_checks(rows),
    ]
    for system in dict.fromkeys(row["system"] for row in rows):
        for work in WORDS:
            of_work = [row for row in rows if (row["system"], row["work"]) == (system, work)]
            if of_work:
                lines += ["", f"## {system}, {WORDS[work]}", "", HEADER, "|---" * 15 + "|"]
                lines += [_line(row, of_work) for row in sorted(of_work, key=_order)]
    lines += ["", "## Figures", ""]
    names = [name for name, _ in figures(rows)]
    lines += [f"![{name.replace('_', ' ')}]({name}.svg)" for name in names]
    lines += ["", "## Planned and missing points", ""]
    lines += _missing(rows, missing)
    return "\n".join(lines) + "\n"


def _order(row: Row) -> tuple[Any, ...]:
    return row["chip"], row["items"] != row["chips"], row["chips"]


def times(row: Row) -> dict[str, float]:
    """Seconds of all programs of a row, by resource, and links' bytes."""
    programs = row["programs"]
    sums = {
        name: sum(program.get(name, 0.0) for program in programs)
        for name in ("compute_s", "memory_s", "link_s", "latency_s", "link_bytes")
    }
    return sums | {"links_s": sums["link_s"] + sums["latency_s"]}


def _line(row: Row, others: Sequence[Row]) -> str:
    programs, found = row["programs"], times(row)
    largest = max(programs, key=lambda program: program["total_memory"])
    cells = [
        row["slice"],
        f"{row['items']:,}",
        f"{row['memory'] / GIBIBYTE:.2f}",
        f"{largest['memory'].get('temporaries', 0) / GIBIBYTE:.2f}",
    ]
    if row["seconds"] is None:
        return "| " + " | ".join([*cells, "does not fit", *[""] * 9, row["code"] or ""]) + " |"
    longest = max(programs, key=lambda program: program["seconds"])
    bounds = [p["seconds"] / p["times_the_bound"] for p in programs if p["times_the_bound"]]
    bounded = sum(p["seconds"] for p in programs if p["times_the_bound"])
    dollars = row["dollars_per_1000"]
    cells += [
        f"{1e3 * found['compute_s']:.4g}",
        f"{1e3 * found['memory_s']:.4g}",
        f"{1e3 * found['links_s']:.4g}",
        f"{found['link_bytes'] / 1e9:.3g}",
        f"{1e3 * row['seconds']:.4g}",
        longest["bound"],
        f"{bounded / sum(bounds):.2f}" if bounds else "",
        f"{row['items'] / row['seconds']:.4g}",
        _efficiency(row, others),
        "" if dollars is None else f"{dollars:.4g}",
        row["code"] or "",
    ]
    return "| " + " | ".join(cells) + " |"


def _efficiency(row: Row, others: Sequence[Row]) -> str:
    """Items per second and chip, relative to the smallest slice with as many items a chip."""
    alike = [
        other
        for other in others
        if other["chip"] == row["chip"]
        and other["items"] * row["chips"] == row["items"] * other["chips"]
        and other["seconds"] is not None
    ]
    least = min(alike, key=lambda other: other["chips"])
    return f"{least['seconds'] / row['seconds']:.2f}" if least is not row else ""


def checks(rows: Sequence[Row]) -> Iterator[tuple[str, float, float]]:
    """Yields claims on Light's teacher-forced step on v5e: words, value and limit."""
    found = {
        (row["chips"], row["items"] // row["chips"]): row
        for row in rows
        if (row["system"], row["work"], row["chip"])
        == ("sequential_light", "teacher_forced", "v5e")
        and row["seconds"] is not None
    }
    for chips, each in itertools.product((16, 256), (1, 2)):
        if (row := found.get((chips, each))) is not None:
            t, on = times(row), f"{chips} chips, {each} item{'s' * (each > 1)} a chip"
            yield f"{on}: links / compute", t["links_s"] / t["compute_s"], 0.5
            yield f"{on}: HBM / compute", t["memory_s"] / t["compute_s"], 1.0
            yield f"{on}: GB through a chip's links", t["link_bytes"] / 1e9, 80.0
    if {(16, 1), (256, 1)} <= found.keys():
        few, many = found[16, 1], found[256, 1]
        yield "256-chip step / 16-chip step", many["seconds"] / few["seconds"], 1.15
        temporaries = [r["programs"][0]["memory"].get("temporaries", 0) for r in (few, many)]
        yield "temporaries at 256 chips / at 16", temporaries[1] / temporaries[0], 1.3


def _checks(rows: Sequence[Row]) -> list[str]:
    found = list(checks(rows))
    if not found:
        return []
    lines = ["", "## Goals of the partition", ""]
    lines += [
        "`sequential_light`, teacher-forced step, v5e. With one item a chip, a weight meets 127 "
        "positions where it is read; a v5e does 240 FLOPs in the time of a byte.",
        "",
    ]
    lines += ["| measure | value | goal, at most | |", "|---|---|---|---|"]
    for words, value, limit in found:
        lines.append(
            f"| {words} | {value:.3g} | {limit:g} | {'met' if value <= limit else '**missed**'} |"
        )
    return lines


def _missing(rows: Sequence[Row], missing: Sequence[Any]) -> list[str]:
    """Lines of a table: points of each system and work, those at hand and all."""
    here = collections.Counter((row["system"], row["work"]) for row in rows)
    lacking = collections.Counter((point.system, point.work) for point in missing)
    lines = ["| system | work | points here | of |", "|---|---|---|---|"]
    for system, work in dict.fromkeys([*here, *lacking]):
        known = here[system, work]
        lines.append(f"| {system} | {work} | {known} | {known + lacking[system, work]} |")
    return lines


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Yields a figure per system, by name: time and cost of an item against chips, weak scaling."""
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system and row["seconds"] is not None]
        own = [row for row in own if row["items"] == row["chips"]]
        works = [work for work in WORDS if any(row["work"] == work for row in own)]
        if not works:
            continue
        figure = Figure(figsize=(3.8 * len(works), 5.6), layout="constrained")
        axes = figure.subplots(2, len(works), squeeze=False, sharex=True)
        for column, work in enumerate(works):
            _draw(axes[:, column], [row for row in own if row["work"] == work], WORDS[work])
        figure.suptitle(f"{system}, one item a chip: estimates from compiled programs", fontsize=10)
        yield system, figure


def _draw(axes: Any, rows: Sequence[Row], title: str) -> None:
    for number, chip in enumerate(dict.fromkeys(row["chip"] for row in rows)):
        line = sorted(
            (row for row in rows if row["chip"] == chip),
            key=lambda row: row["chips"],
        )
        style = {
            "color": SERIES_COLOURS[number],
            "marker": SERIES_MARKERS[number],
            "label": chip,
        }
        chips = [row["chips"] for row in line]
        axes[0].plot(chips, [1e3 * row["seconds"] for row in line], **style)
        if all(row["dollars_per_1000"] is not None for row in line):
            axes[1].plot(chips, [row["dollars_per_1000"] for row in line], **style)
    axes[0].set_title(title, fontsize=9)
    axes[0].set_ylabel("ms")
    axes[1].set_ylabel("$ per 1,000 items")
    axes[1].set_xlabel("chips")
    for axis in axes:
        axis.set_xscale("log", base=4)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)


def write_figures(rows: Sequence[Row], folder: Path) -> None:
    """Writes every figure as SVG, with the same bytes for the same rows."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "scaling"}):
        for name, figure in figures(rows):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
