"""What all commands share: help of one layout, and the exit codes of what they end in."""

from __future__ import annotations

import argparse
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

MEANINGS = {
    0: "done",
    BAD_INPUT: "bad input: standard error names it and what is allowed",
    DIVERGED: "training diverged",
    PREEMPTED: "ended by SIGTERM: the same command resumes",
}


def command_parser(
    name: str,
    description: str,
    *,
    examples: str,
    codes: tuple[int, ...] = (0, BAD_INPUT),
    appendix: str = "",
) -> Parser:
    """The parser of `rmas NAME`, whose help says what it does, shows examples and lists exit codes.

    Args:
      name: of the command.
      description: what it does; text of several lines stays as it is.
      examples: command lines.
      codes: exit codes that it has, of `MEANINGS`.
      appendix: what its help ends with.
    """
    listed = "\n".join(f"  {code:<3} {MEANINGS[code]}" for code in codes)
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
    """Does the work of a command; an error that a user can mend becomes a message and a code.

    Of several processes the first one prints.

    Args:
      work: returns an exit code; None stands for 0.
      bad_input: errors that bad input ends in.
    """
    try:
        return work() or 0
    except bad_input as error:
        message, code = describe(error), BAD_INPUT
    except DivergedError as error:
        message, code = describe(error), DIVERGED
    except PreemptedError as error:
        message, code = f"{error}; the same command goes on from there", PREEMPTED
    except Exception as error:
        if (full := full_disk(error)) is None:
            raise
        message, code = describe(full), BAD_INPUT
    if not jax.distributed.is_initialized() or is_first():
        print("stopped:" if code == PREEMPTED else "error:", message, file=sys.stderr)
    return code
