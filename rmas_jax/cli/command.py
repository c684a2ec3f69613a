"""Common parts of all commands: the layout of help, and exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
from collections.abc import Callable

import jax

from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import (
    BAD_INPUT,
    DIVERGED,
    PREEMPTED,
    USER_ERRORS,
    describe,
    full_disk,
)
from rmas_jax.host.preemption import PreemptedError
from rmas_jax.host.processes import is_first
from rmas_jax.training.divergence import DivergedError

INTERRUPTED = 128 + signal.SIGINT
MEANINGS = {
    0: "done",
    BAD_INPUT: "bad input: standard error names it and the allowed values",
    DIVERGED: "training diverged",
    PREEMPTED: "ended by SIGTERM, or another process was lost: the same command resumes",
    INTERRUPTED: "interrupted by Ctrl-C",
}


def command_parser(
    name: str,
    description: str,
    *,
    examples: str,
    codes: tuple[int, ...] = (0, BAD_INPUT),
    appendix: str = "",
) -> Parser:
    """The parser of `rmas NAME`, whose help has a description, examples and exit codes.

    Args:
      name: of the command.
      description: printed without changes to its lines.
      examples: command lines.
      codes: its exit codes, keys of `MEANINGS`, without that of every interrupted command.
      appendix: end of the help.
    """
    listed = "\n".join(f"  {code:<3} {MEANINGS[code]}" for code in (*codes, INTERRUPTED))
    parts = (
        f"examples:\n{textwrap.indent(examples.strip(), '  ')}",
        f"exit codes:\n{listed}",
        appendix,
    )
    return Parser(
        prog=f"rmas {name}",
        description=description,
        epilog="\n\n".join(filter(None, parts)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code_of(
    work: Callable[[], int | None], *, bad_input: tuple[type[Exception], ...] = USER_ERRORS
) -> int:
    """Runs a command; prints a user error in the first process, and returns the exit code.

    Args:
      work: returns an exit code; None means 0.
      bad_input: classes of errors with exit code BAD_INPUT.
    """
    try:
        return work() or 0
    except bad_input as error:
        message, code = describe(error), BAD_INPUT
    except DivergedError as error:
        message, code = describe(error), DIVERGED
    except PreemptedError as error:
        message, code = f"{error}; the same command resumes from there", PREEMPTED
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except Exception as error:
        if (full := full_disk(error)) is None:
            raise
        message, code = describe(full), BAD_INPUT
    if not jax.distributed.is_initialized() or is_first():
        kind = "stopped:" if code in (PREEMPTED, INTERRUPTED) else "error:"
        print(kind, message, file=sys.stderr)
    return code
