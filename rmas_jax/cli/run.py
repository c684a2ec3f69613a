"""Runs an experiment from a configuration file to a report."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.options import add_config_options, add_process_options, join_processes
from rmas_jax.config import ConfigError, RunConfig, field_help, load_config
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, DIVERGED, PREEMPTED
from rmas_jax.host.preemption import sigterm_noted
from rmas_jax.host.processes import broadcast_from_first, is_first, on_all
from rmas_jax.host.writing import check_output_file
from rmas_jax.planning.executables import (
    in_use,
    read_executables,
    save_executables,
    without_cache,
)
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.tables import terminal_table
from rmas_jax.runs.executables import made_for, made_for_here
from rmas_jax.runs.plan import plan_run
from rmas_jax.runs.run import FinishedRun, run

DESCRIPTION = """\
Train the links of a team, evaluate it and write a report, according to a configuration.

The steps are inner loop, outer loop (its phases resume from their checkpoints), evaluation (resumes
by item and rollout), gradient norms and report; finished steps do not run again. All files are in
OUTPUT_DIR/NAME; a finished run is only read. SIGTERM stops a run after it has saved its state; the
same command resumes it. Several processes, one per host, run as one: the first writes, and any may
receive the signal. With system.links, training starts from these links, and the inner loop keeps
the outer ones; without training they are evaluated unchanged.

Paths in the file are relative to its folder; output_dir and paths in --set, to the current one. A
path may be a URL of object storage, such as gs://BUCKET/links.safetensors (extra: storage), except
those of agents.
"""
EXAMPLES = """\
rmas run --config quickstart
rmas run --config quickstart --set name=longer --set outer.phases.0.steps=400
rmas run --config mine/run.yaml --dry-run                   # the same as rmas plan
rmas run --config mine/run.yaml --coordinator HOST:PORT --processes 2 --process 0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 3 for a diverged run, 75 for a preempted one.

    NaN or infinite numbers of agents are bad input in evaluation, and divergence in training.
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
        help="print the plan of the run and stop, as `rmas plan`",
    )
    parser.add_argument(
        "--executable",
        metavar="FILE",
        help="programs that `rmas plan --executable` has compiled for this configuration and these "
        "devices; a file of your own, as it holds machine code",
    )
    args = parser.parse_args(arguments)
    running = functools.partial(print_run, executable=args.executable)
    return start(parser, args, print_plan if args.dry_run else running)


def start(parser: Parser, args: argparse.Namespace, work: Callable[[RunConfig], None]) -> int:
    """Joins other processes, then works on the configuration; returns the exit code."""
    try:
        join_processes(args)
    except ConfigError as error:
        parser.error(str(error))

    return exit_code(lambda: work(on_all(lambda: load_config(args.config, args.overrides))))


def print_run(config: RunConfig, *, executable: str | None = None) -> None:
    """Runs an experiment, with programs of a file of executables, and prints its results."""
    with contextlib.ExitStack() as stack:
        if executable is not None:
            settings = on_all(lambda: made_for_here(config))
            file = on_all(lambda: read_executables(executable, made_for=settings))
            stack.enter_context(in_use(file))
        finished = run(config)
    broadcast_from_first(lambda: print_results(finished))


def print_plan(
    config: RunConfig, *, json: str | None = None, executable: str | None = None, **options: Any
) -> None:
    """Prints the plan of a run; `options` are of `plan_run`.

    Also writes it to a file of JSON, and its programs to a file of executables.
    """
    for option, path in (("--json", json), ("--executable", executable)):
        if path is not None:
            check_output_file(path, option=option, error=ConfigError)
    with contextlib.nullcontext() if executable is None else without_cache():
        plan = plan_run(config, is_executable=executable is not None, **options)

    def write() -> None:
        print("\n".join(plan.lines()))
        if json is not None:
            write_atomic(Path(json), dumps(plan.as_json(), indent=2) + "\n")
        if executable is not None:
            mesh = plan.inputs.team.mesh
            assert mesh is not None  # a run has one
            settings = made_for(config, plan.mesh, mesh.devices.flat[0])
            save_executables(executable, plan.compiled, made_for=settings)

    broadcast_from_first(write)


def print_results(finished: FinishedRun) -> None:
    """Prints the main table of a run and the path of its report."""
    measured = finished.measured
    print(terminal_table(Results(measured.results, measured.items)))
    print(f"\nreport: {finished.files.address(finished.files.report)}")


def exit_code(work: Callable[[], None]) -> int:
    """The exit code of work with runs, which SIGTERM stops after they have saved their state."""
    log_to_stderr()

    def interruptible() -> None:
        with sigterm_noted():
            work()

    return exit_code_of(interruptible)


def log_to_stderr() -> None:
    """Sends warnings to standard error, and the package's INFO messages in the first process."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:  # importing grain adds one
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(is_no_traceback)
    logging.getLogger("rmas_jax").setLevel(logging.INFO if is_first() else logging.ERROR)


def is_no_traceback(record: logging.LogRecord) -> bool:
    """Filters tracebacks that libraries log, once per thread, for errors that they also raise."""
    return not record.exc_info
