"""The C library's allocator in processes that run for long."""

from __future__ import annotations

import contextlib
import ctypes
import os

ARENAS, VARIABLE = 2, "MALLOC_ARENA_MAX"
M_ARENA_MAX = -8  # of malloc.h


def keep_few_arenas() -> None:
    """Lets threads that start from now on share arenas.

    glibc gives each thread of a program an arena of its own, up to eight per core, and memory that
    is freed in one is not used by the others: a process that serves for long grows until all are
    full. Does nothing if the variable is set, or the C library is another.
    """
    if VARIABLE not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
