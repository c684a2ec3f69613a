"""Several processes as one: the first decides and writes, and an error in one is raised in all.

Each host runs one process of the same code. Processes wait for each other in every computation on
the mesh, so all must take the same branches. Sources of disagreement (files, tools, differences
between hosts) go through this module. All processes call its functions in the same order; in a
single process they only call their argument.
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmas_jax.host.errors import PREEMPTED

T = TypeVar("T")

LONGEST_WAIT_S = 24 * 3600  # while another process prepares data or runs tools
JOIN_S = 300  # until all processes must have joined; else JAX ends those that have
# Without a sign of life of a process, until JAX ends all others. Threads of C++ send the signs, so
# that compiling, tracing and waiting do not delay them; a process that is stopped does.
HEARTBEAT_S = 40
# Of errors of collectives and barriers in which another process was lost.
LOST = re.compile(
    r"gloo|heartbeat|coordination service|connection (closed|reset|refused)|task.*(died|unhealthy)",
    re.IGNORECASE,
)
_exchanges = itertools.count()


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes; must precede all JAX calls. None lets JAX detect the values.

    A process that ends without the others, or gives no sign of life for `HEARTBEAT_S`, ends all
    of them, each with a message. Where one has not started after `JOIN_S`, JAX aborts those that
    have; a message comes first, as that of JAX names no cause.

    Raises:
      ValueError, RuntimeError: JAX cannot detect the processes.
    """
    # The CPU backend for several processes; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    own = "this process" if process is None else f"process {process} of {processes}"
    waits = threading.Timer(
        JOIN_S / 10,
        print,
        [f"{own} waits for others, which must all start within {JOIN_S} s; are all there?"],
        {"file": sys.stderr, "flush": True},
    )
    waits.daemon = True
    waits.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=JOIN_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    finally:
        waits.cancel()
    sys.excepthook = _end_at_once


def lost_process(error: BaseException) -> str | None:
    """The message of an error that comes from the loss of another process; None for any other."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or not LOST.search(str(error)):
        return None
    reason = str(error).splitlines()[0]
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost another one, whose log may "
        f"name the cause ({reason}); start all again to resume"
    )


def _end_at_once(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ends a failed process without waiting for the others, which fail after it."""
    if message := lost_process(error):
        print("stopped:", message, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(PREEMPTED if message else 1)


def is_first() -> bool:
    """Whether this is the first process, which decides and writes."""
    return jax.process_index() == 0


def broadcast_from_first(call: Callable[[], T]) -> T:
    """Calls in the first process only; returns the result in all processes.

    Args:
      call: returns a picklable value; its errors are raised in all processes.
    """
    if jax.process_count() == 1:
        return call()
    return _exchange(*(_outcome(call) if is_first() else (None, None)))[0]


def on_all(call: Callable[[], T]) -> T:
    """Calls in every process; an error in one is raised in all, before any continues.

    Args:
      call: local to this process, such as reading files; without communication.

    Returns:
      The result in this process.
    """
    if jax.process_count() == 1:
        return call()
    value, error = _outcome(call)
    _exchange(None, error)
    return cast(T, value)  # there was no error


def first_then_others(call: Callable[[], T]) -> T:
    """As `on_all`, but the others start after the first process has finished, and see its files."""
    if is_first():
        value = on_all(call)
        barrier()
        return value
    barrier()
    return on_all(call)


def barrier() -> None:
    """Waits for all processes."""
    on_all(lambda: None)


def _outcome(call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return call(), None
    except Exception as error:
        return None, error


def _exchange(value: Any, error: Exception | None) -> list[Any]:
    """The values of all processes, in every one of them.

    Raises:
      Exception: this process's error, or else that of the first process that has one.
    """
    from orbax.checkpoint import multihost  # heavy, and a single process needs none of it

    # The barrier has a long limit; a collective on CPUs times out after 30 seconds.
    name, everyone = f"rmas_jax {next(_exchanges)}", set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=LONGEST_WAIT_S, processes=everyone)
    own = np.frombuffer(pickle.dumps((value, _portable(error))), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(own.size))
    width = 1 << int(sizes.max()).bit_length()  # few widths, because each one compiles
    rows = multihost_utils.process_allgather(np.pad(own, (0, width - own.size)))
    outcomes = [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    if error is not None:
        raise error
    for process, (_, raised) in enumerate(outcomes):
        if raised is not None:
            raised.add_note(f"(in process {process})")
            raise raised
    return [other for other, _ in outcomes]


def _portable(error: Exception | None) -> Exception | None:
    """The error, or its text if it cannot be pickled."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
