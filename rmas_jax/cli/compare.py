"""Compares runs, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.config import ConfigError
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.writing import check_output_file
from rmas_jax.reporting.compare import Choice, compare_runs
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.reporting.table import Table
from rmas_jax.run_files import RunFiles

DESCRIPTION = """\
Compare runs with the first one, on every benchmark, split, method and number of rounds that they
share: paired by question, with intervals, corrected p-values and the smallest difference that so
many questions could show; then each run's result, how its answers ended, and the paper's value
where it has one. --method and --rounds compare cells that differ; a run's only method, or only
number of rounds, need not be named. Splits whose questions, gold answers, grader, metric or
sampling differ between the runs are named and left out.
"""
EXAMPLES = """\
rmas compare runs/quickstart runs/longer
rmas compare runs/latent runs/text --method recursive_mas recursive_text
rmas compare runs/a runs/a --method recursive_mas single_solver --rounds 3 1
rmas compare runs/a runs/b runs/c --markdown comparison.md
rmas compare runs/greedy runs/drawn --any-sampling
"""


def choices_of(
    count: int, methods: Sequence[str] | None, rounds: Sequence[int] | None
) -> list[Choice]:
    """The cells of each of `count` runs.

    Raises:
      ConfigError: there is neither one value for all runs nor one for each.
    """
    columns = []
    for option, values in (("--method", methods), ("--rounds", rounds)):
        given: Sequence[Any] = values or [None]
        if len(given) not in (1, count):
            raise ConfigError(f"{option} must have 1 value, or one per run ({count}), got {given}")
        columns.append([*given] * (count // len(given)))
    return [Choice(*cell) for cell in zip(*columns, strict=True)]


def show(
    directories: Sequence[str],
    choices: Sequence[Choice],
    markdown: str | None,
    *,
    any_sampling: bool,
) -> None:
    """Prints the comparison; also writes it as Markdown, if asked."""
    if markdown is not None:
        check_output_file(markdown, option="--markdown", error=ConfigError)
    runs = []
    for directory in directories:
        files = RunFiles.at(directory)
        files.pull()
        runs.append(read_run(files.root))
    found = list(compare_runs(runs, choices, any_sampling=any_sampling))
    print("\n\n".join(part.to_text(200) if isinstance(part, Table) else part for part in found))
    if markdown is not None:
        parts = [part.to_markdown() if isinstance(part, Table) else part for part in found]
        write_atomic(Path(markdown), "\n\n".join(parts) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = command_parser("compare", DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("first", metavar="RUN", help="folder of the first run (runs/NAME)")
    parser.add_argument("others", metavar="RUN", nargs="+", help="folders of other runs")
    parser.add_argument(
        "--method", nargs="+", metavar="NAME", help="method to compare: one for all, or one per run"
    )
    parser.add_argument(
        "--rounds",
        nargs="+",
        type=int,
        metavar="R",
        help="number of rounds to compare: one for all runs, or one per run",
    )
    parser.add_argument("--markdown", metavar="FILE", help="also write the comparison there")
    parser.add_argument(
        "--any-sampling",
        action="store_true",
        help="also compare benchmarks whose answers were sampled differently, and say so",
    )
    options = parser.parse_args(arguments)
    directories = [options.first, *options.others]

    def work() -> None:
        choices = choices_of(len(directories), options.method, options.rounds)
        show(directories, choices, options.markdown, any_sampling=options.any_sampling)

    return exit_code_of(work)
