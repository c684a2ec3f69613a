"""Runs an experiment from a configuration file to a report."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.options import add_config_options, add_process_options, join_processes
from rmas_jax.config import ConfigError, field_help, load_config
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, DIVERGED, PREEMPTED
from rmas_jax.host.preemption import sigterm_noted
from rmas_jax.host.processes import broadcast_from_first, is_first, on_all
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.tables import terminal_table
from rmas_jax.runs.plan import describe_run
from rmas_jax.runs.resolve import resolve
from rmas_jax.runs.run import FinishedRun, run

DESCRIPTION = """\
Train the links of a team, evaluate it and write a report, as a configuration says.

Steps run in order, and one that is finished is not run again: inner loop, outer loop (its phases
resume from their checkpoints), evaluation (resumes batch by batch), gradient norms, report.
Everything is written under OUTPUT_DIR/NAME; a run of which all is finished is only read. SIGTERM
ends a run in good order; the same command resumes it. Several processes, one per host, run as one:
the first writes, and any may get the signal. Where system.links names links, training starts from
those, and the inner loop leaves the outer ones alone; without training they are evaluated as they
are.

Paths in the file count from its folder; output_dir and paths in --set from the current one.
"""
EXAMPLES = """\
rmas run --config quickstart
rmas run --config quickstart --set name=longer --set outer.phases.0.steps=400
rmas run --config mine/run.yaml --dry-run                   # the same as rmas plan
rmas run --config mine/run.yaml --coordinator HOST:PORT --processes 2 --process 0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 3 for a diverged run, 75 for a preempted one.

    Agents whose numbers are NaN or infinite are bad input to an evaluation; training diverges.
    """
    parser = command_parser(
        "run",
        DESCRIPTION,
        examples=EXAMPLES,
        codes=(0, BAD_INPUT, DIVERGED, PREEMPTED),
        appendix=f"fields of a configuration:\n\n{field_help()}",
    )
    add_config_options(parser)
    add_process_options(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what the run would do, and the memory that takes, as `rmas plan` does",
    )
    args = parser.parse_args(arguments)
    return start(parser, args, dry=args.dry_run)


def start(parser: Parser, args: argparse.Namespace, *, dry: bool) -> int:
    """Joins other processes, then runs or plans; returns the exit code."""
    try:
        join_processes(args)
    except ConfigError as error:
        parser.error(str(error))

    def work() -> None:
        config = on_all(lambda: load_config(args.config, args.overrides))
        if dry:
            plan = list(describe_run(resolve(config)))
            broadcast_from_first(lambda: print("\n".join(plan)))
        else:
            finished = run(config)
            broadcast_from_first(lambda: print_results(finished))

    return exit_code(work)


def print_results(finished: FinishedRun) -> None:
    """Prints the main table of a run and where its report is."""
    measured = finished.measured
    print(terminal_table(Results(measured.results, measured.items)))
    print(f"\nreport: {finished.files.report}")


def exit_code(work: Callable[[], None]) -> int:
    """The exit code of work that runs are part of: SIGTERM ends it in good order."""
    log_to_stderr()

    def interruptible() -> None:
        with sigterm_noted():
            work()

    return exit_code_of(interruptible)


def log_to_stderr() -> None:
    """Sends log messages to standard error, those of the package from INFO on in one process."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:  # grain's import has set one up before
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(is_no_traceback)
    logging.getLogger("rmas_jax").setLevel(logging.INFO if is_first() else logging.ERROR)


def is_no_traceback(record: logging.LogRecord) -> bool:
    """Leaves out what libraries log of an error that they also raise, once for each thread."""
    return not record.exc_info
