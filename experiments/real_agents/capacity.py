"""How much M thoughts hold, against as many tokens of text: the capacity curve.

    python -m experiments.real_agents.capacity --out docs/real-agents/capacity --steps 1 2 4 8 11

A planner that does not know the question sends all of its facts; the solver is asked about one.
For every M and seed a run (`OUTPUT_DIR/capacity-M-SEED`) aligns links, trains them by the outer
loop, and measures the trained links, the aligned ones, text cut to M tokens, whole text and
controls. Finished runs are reused, so that further M, seeds or an interrupted study go on from
there. With `--report-only`, runs are read as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from rmas_jax.cli.run import exit_code, print_results
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.evaluation.methods import (
    ALIGNED,
    LATENT,
    NO_LATENTS,
    SHUFFLED,
    TEXT,
    TRUNCATED,
    describe,
)
from rmas_jax.evaluation.metrics import PairedDifference
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting.audit import MEANINGS, AuditRecord, read_audit
from rmas_jax.reporting.results import Result, Results, points
from rmas_jax.reporting.run_directory import Run, read_run
from rmas_jax.reporting.table import ABSENT, Table
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.run import run

CONFIG = "experiments/configs/real_agents/capacity.yaml"
CURVES = (LATENT, ALIGNED, TRUNCATED)  # that depend on M
CONTROLS = (TEXT, NO_LATENTS, SHUFFLED)
AT_LEAST = 10.0  # points that the goal asks of the trained links above both others


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all M and seeds and writes the page; returns the exit code of a run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the page")
    parser.add_argument("--config", default=CONFIG, metavar="FILE")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 11], metavar="M")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    parser.add_argument("--report-only", action="store_true", help="read the finished runs alone")
    args = parser.parse_args(arguments)

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        config = load_config(args.config, args.set)
        found = {
            count: [
                measured(variant(config, count, seed), report_only=args.report_only)
                for seed in args.seeds
            ]
            for count in args.steps
        }
        write(found, args.out)

    return exit_code(work)


def variant(config: RunConfig, count: int, seed: int) -> RunConfig:
    """The run of one M and seed."""
    name = f"{config.name}-{count}-{seed}"
    return dataclasses.replace(with_steps(config, count), name=name, seed=seed)


def with_steps(config: RunConfig, count: int) -> RunConfig:
    """The same with M latent steps."""
    system = dataclasses.replace(config.system, latent_steps=count)
    return dataclasses.replace(config, system=system)


def measured(config: RunConfig, *, report_only: bool) -> Run:
    """The content of a run's folder; runs what is not finished."""
    if report_only:
        return read_run(Path(config.output_dir) / config.name)
    finished = run(config)
    print_results(finished)
    return finished.measured


def write(found: Mapping[int, Sequence[Run]], out: Path) -> None:
    """Writes the rows of all M, the page and its figure."""
    pooled = {
        count: Results(
            [row for of_run in runs for row in of_run.results],
            [item for of_run in runs for item in of_run.items],
        )
        for count, runs in found.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    figure(pooled).savefig(out / "capacity.png", metadata={"Software": None})
    audits = {
        count: [read_audit(RunFiles(of_run.directory).audit) for of_run in runs]
        for count, runs in found.items()
        if all(RunFiles(of_run.directory).audit.exists() for of_run in runs)
    }
    rows = {
        count: [row for of_run in runs for row in of_run.results] for count, runs in found.items()
    }
    write_atomic(RunFiles(out).results, json.dumps(rows, indent=1) + "\n")
    write_atomic(out / "README.md", page(pooled, audits))
    print(f"page: {out / 'README.md'}")


def at(results: Results, method: str) -> Result | None:
    """A method's result on the first split, at its largest number of rounds."""
    over = results.over_rounds(results.splits[0], method)
    return over[max(over)] if over else None


def figure(pooled: Mapping[int, Results]) -> Figure:
    """Accuracy against M, with 95 % intervals."""
    drawn = Figure(figsize=(6.4, 4.2), dpi=160, layout="constrained")
    axis = drawn.subplots()
    for place, method in enumerate((*CURVES, *CONTROLS)):
        style, of_all = describe(method), {m: at(of, method) for m, of in pooled.items()}
        own = {m: result for m, result in of_all.items() if result is not None}
        if not own:
            continue
        centre = [100 * result.accuracy for result in own.values()]
        low, high = zip(*(result.interval for result in own.values()), strict=True)
        axis.errorbar(
            [m * (1 + 0.012 * (place - 2)) for m in own],
            centre,
            yerr=[
                [max(0.0, c - 100 * x) for c, x in zip(centre, low, strict=True)],
                [max(0.0, 100 * x - c) for c, x in zip(centre, high, strict=True)],
            ],
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            linewidth=1.8 if method in CURVES else 1.0,
            markersize=5,
            elinewidth=1,
            capsize=2,
            label=style.label,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(pooled), [str(m) for m in pooled])
    axis.minorticks_off()
    axis.set_xlabel("M: latent steps of a message, or tokens of a cut one")
    axis.set_ylabel("correct, %")
    axis.set_ylim(-3, 103)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return drawn


def page(pooled: Mapping[int, Results], audits: Mapping[int, Sequence[AuditRecord]]) -> str:
    """The figure, a table of the curve and one of the controls, and whether the goal is met."""
    results = next(iter(pooled.values()))
    example = at(results, LATENT) or results.all[0]
    seeds = ", ".join(map(str, example.seeds))
    tables = [curve_table(pooled), *([controls_table(audits)] if audits else [])]
    return "\n\n".join(
        [
            "# What M thoughts hold, against as many tokens",
            "`python -m experiments.real_agents.capacity` makes this page. The planner does not "
            "know the question: its message has to hold all of its facts, and the solver is asked "
            f"about one of them. {example.n:,} answers (seeds {seeds}); intervals of 95 % over "
            "questions.",
            "![Accuracy against M](capacity.png)",
            *(table.to_markdown() for table in tables),
            verdict(pooled),
            "",
        ]
    )


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


def percent(result: Result) -> str:
    """An accuracy in percent with its interval."""
    low, high = result.interval
    return f"{100 * result.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
