"""User errors: one message each, of bounded length; and exit codes."""

from __future__ import annotations

import errno
import os
import re
import reprlib
import sys
from collections.abc import Sequence
from typing import TextIO

# Exit codes besides 0; 75 is EX_TEMPFAIL of sysexits.h: try again.
BAD_INPUT, DIVERGED, PREEMPTED = 2, 3, 75
MESSAGE_LIMIT = 1950  # characters of a message; with `error: ` before it, below 2,000
CUT = " [...] "
LISTED = 12  # lines of a list in a message
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or a full quota


class InputError(ValueError):
    """Unusable input; the message names the file or field, the value and the allowed ones.

    Every package has its own subclass (ConfigError, DataError, CheckpointError, ...).
    """


# Errors that a command reports as one message; others are bugs, with their traceback.
USER_ERRORS = (InputError, ImportError, OSError, MemoryError)


def describe(error: BaseException) -> str:
    """The message of one of USER_ERRORS, with its notes, in at most MESSAGE_LIMIT characters."""
    text = str(error)
    if isinstance(error, MemoryError):
        text = f"not enough memory{': ' * bool(text)}{text}"
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        text = where + error.strerror
        if error.errno in FULL:
            text += "; finished files are complete: free space, then run the same command again"
    # JAX adds a note to errors during tracing: how to see more of a traceback.
    notes = [n for n in getattr(error, "__notes__", ()) if "JAX_TRACEBACK_FILTERING" not in n]
    return clipped("\n".join([text, *notes]))


def full_disk(error: BaseException) -> OSError | None:
    """The full-disk error that caused an error, also a library's; None for another cause.

    Libraries that write files, some in their own threads, raise other classes of errors.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in FULL and found.filename is not None:
            return found
        text = str(found)
        for code in FULL:
            if os.strerror(code) in text:
                path = re.search(r"/[^\s\"';:]+", text)
                return OSError(code, os.strerror(code), path and path[0])
        left += [found.__cause__, found.__context__, *getattr(found, "exceptions", ())]
    return None


def print_error(error: BaseException, *, file: TextIO | None = None) -> None:
    """Prints `error: MESSAGE`, to standard error by default."""
    print("error:", describe(error), file=sys.stderr if file is None else file)


def clipped(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Printable text, with its middle cut out if longer than `limit`.

    Line breaks and tabs stay; other control characters and lone surrogates are escaped.
    """
    if len(text) > 2 * limit:  # escape no more than the shown parts
        text = text[:limit] + text[-limit:]
    safe = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    if len(safe) <= limit:
        return safe
    half = (limit - len(CUT)) // 2
    return safe[:half] + CUT + safe[-half:]


class _Short(reprlib.Repr):
    """A repr that reads only the shown part of a value."""

    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = limit
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8

    def repr_int(self, x: int, level: int) -> str:
        del level
        digits = x.bit_length() * 0.30103
        return repr(x) if digits < self.maxlong else f"an integer of {digits:.0f} digits"

    def repr_dict(self, x: dict, level: int) -> str:
        """In the order of the file; reprlib would sort, which fails for mixed keys."""
        if level <= 0 and x:
            return "{...}"
        items = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in list(x.items())[: self.maxdict]
        ]
        return "{" + ", ".join(items + ["..."] * (len(x) > self.maxdict)) + "}"


def shown(value: object, limit: int = 80) -> str:
    """A value for a message: its repr, cut at `limit` characters, for any size and depth."""
    text = _Short(limit).repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def listed(lines: Sequence[str], at_most: int = LISTED) -> list[str]:
    """The first lines of a list, each of bounded length, and the number of the others."""
    more = len(lines) - at_most
    return [clipped(line, 400) for line in lines[:at_most]] + [f"and {more:,} more"] * (more > 0)
