"""Runs an experiment from a configuration file to a report.

    rmas run --config experiments/configs/quickstart.yaml
    rmas run --config ... --set name=longer --set outer.phases.0.steps=400
    rmas run --config ... --dry_run
    rmas run --config ... --coordinator HOST:PORT --processes 2 --process 0

Steps run in order, and one that is finished is not run again: inner loop, outer loop (its phases
resume from their checkpoints), evaluation (resumes batch by batch), gradient norms, report.
Everything is written under OUTPUT_DIR/NAME; a run of which all is finished is only read. SIGTERM
ends a run in good order; the same command goes on. Several processes, one per host, run as one: the
first writes, and any may get the signal. Where `system.links` names links, training starts from
those, and the inner loop leaves the outer ones alone; without training they are evaluated as they
are.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from rmas_jax.cli.options import (
    DIVERGED,
    PREEMPTED,
    add_config_options,
    add_process_options,
    join_processes,
)
from rmas_jax.config import ConfigError, field_help, load_config
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, describe, full_disk
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.host.processes import broadcast_from_first, is_first, on_all
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.tables import terminal_table
from rmas_jax.runs.plan import describe_run
from rmas_jax.runs.resolve import resolve
from rmas_jax.runs.run import FinishedRun, run
from rmas_jax.training.divergence import DivergedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; see `exit_code`."""
    parser = Parser(
        description=__doc__,
        epilog="fields of a configuration:\n\n" + field_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    add_process_options(parser)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="prints agents, links, steps, shapes and memory of a run, and where it would write",
    )
    args = parser.parse_args(arguments)
    try:
        join_processes(args)
    except ConfigError as error:
        parser.error(str(error))

    def work() -> None:
        config = on_all(lambda: load_config(args.config, args.overrides))
        if args.dry_run:
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


def exit_code(work: Callable[[], object]) -> int:
    """Does work that runs are part of, as a command does: one message each, and SIGTERM ends it.

    Returns:
      0, 2 for bad input, 3 for a diverged run, 75 for one to go on with. Agents whose numbers are
      NaN or infinite are bad input to an evaluation; training diverges.
    """
    log_to_stderr()
    try:
        with sigterm_noted():
            work()
    except USER_ERRORS as error:
        say("error:", describe(error))
        return BAD_INPUT
    except DivergedError as error:
        say("error:", describe(error))
        return DIVERGED
    except PreemptedError as error:
        say(f"stopped: {error}; the same command goes on from there")
        return PREEMPTED
    except Exception as error:
        if (full := full_disk(error)) is None:
            raise
        say("error:", describe(full))
        return BAD_INPUT
    return 0


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


def say(*message: object) -> None:
    """Prints to standard error, once."""
    if is_first():
        print(*message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
