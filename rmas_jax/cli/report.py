"""Writes the report of a run again, from its files."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.host.errors import describe
from rmas_jax.reporting.report import write
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.reporting.tables import terminal_table
from rmas_jax.run_files import RunFiles

DESCRIPTION = f"""\
Write {RunFiles.report}, {RunFiles.markdown}, {RunFiles.figures}/ and {RunFiles.tables}/ of a run
again from its files, and print the main table and the report's path. In a read-only folder, print
the table alone.
"""
EXAMPLES = """\
rmas report runs/quickstart
rmas report runs/quickstart --quiet
"""
# Errors of read-only files of a finished run.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def rewrite(run_dir: str, *, quiet: bool) -> None:
    """Writes the report of a run folder; with `quiet`, prints only its path."""
    try:
        files = RunFiles.at(run_dir)
        files.pull()
        run = read_run(files.root)
        if not quiet:
            if run.results:
                print(terminal_table(Results(run.results, run.items)), end="\n\n")
            for note in run.notes:
                print(note)
        path = write(run)
        if files.mirror is not None:
            files.mirror.push()
        print(files.address(path))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        print("report not written:", describe(error), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = command_parser("report", DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of the run (runs/NAME)")
    parser.add_argument("--quiet", action="store_true", help="print only the report's path")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: rewrite(options.run_dir, quiet=options.quiet))
