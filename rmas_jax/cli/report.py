"""Writes the report of a run again, from the files it left."""

from __future__ import annotations

import errno
import sys

from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, describe, say_error
from rmas_jax.reporting.report import write
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.reporting.tables import terminal_table
from rmas_jax.run_files import RunFiles

# What keeps the files of a finished run as they are.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and prints its main table and path; returns the exit code."""
    parser = Parser(
        prog="rmas report",
        description=(
            f"Write {RunFiles.report}, {RunFiles.markdown} and {RunFiles.figures}/ of a run again "
            "from its files."
        ),
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="directory of the run (runs/<name>)")
    parser.add_argument("--quiet", action="store_true", help="print the report's path only")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run_dir)
        if not options.quiet:
            if run.results:
                print(terminal_table(Results(run.results, run.items)), end="\n\n")
            for note in run.notes:
                print(note)
        print(write(run))
    except USER_ERRORS as error:
        if isinstance(error, OSError) and error.errno in READ_ONLY:
            print("report: not written,", describe(error), file=sys.stderr)
            return 0
        say_error(error)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
