"""Writes the report of a run again, from the files it left."""

from __future__ import annotations

import argparse
import sys

from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, say_error
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting.report import write
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.run_directory import RunFileError, read_run
from rmas_jax.reporting.tables import terminal_table


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and prints its main table and path; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rmas_jax.reporting",
        description="Write report.html, report.md and figures/ of a run again from its files.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of the run (runs/<name>)")
    parser.add_argument("--quiet", action="store_true", help="print the report's path only")
    options = parser.parse_args(arguments)
    try:
        check_output_folder(options.run_dir, option="RUN_DIR", error=RunFileError)
        run = read_run(options.run_dir)
        path = write(run)
    except USER_ERRORS as error:
        say_error(error)
        return BAD_INPUT
    if not options.quiet:
        if run.results:
            print(terminal_table(Results(run.results, run.items)), end="\n\n")
        for note in run.notes:
            print(note)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
