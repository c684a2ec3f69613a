"""Looks for holes in a sandbox, from inside it."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CLONE_NEWUSER = 0x10000000
IPC_PRIVATE, IPC_RMID = 0, 0
KILLED = 128 + signal.SIGKILL  # exit code


def holes(
    folder: str,
    port: int,
    processes: int,
    memory_bytes: int,
    files: int,
    calls: Mapping[str, int],
) -> list[str]:
    """What code can do here that it must not be able to; empty in a sandbox that holds.

    Args:
      folder: one of the host's that holds a file `secret`.
      port: where somebody listens on the host's loopback.
      processes: how many there may be.
      memory_bytes: how much of it a process may have.
      files: how many its folder may hold.
      calls: the numbers of system calls that have to fail, and would not without arguments.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    def start_processes() -> None:
        for _ in range(2 * processes):
            if os.fork() == 0:
                signal.pause()

    def make_namespace() -> None:
        if libc.unshare(CLONE_NEWUSER) != 0:
            raise OSError

    def make_semaphores() -> None:
        if (number := libc.semget(IPC_PRIVATE, 1, 0o600)) < 0:
            raise OSError
        libc.semctl(number, 0, IPC_RMID)

    def share_memory() -> None:
        mmap.mmap(-1, mmap.PAGESIZE).close()  # MAP_SHARED

    def widen_pipe() -> None:
        ends = os.pipe()
        try:
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 1 << 20)
        finally:
            for end in ends:
                os.close(end)

    def make_files() -> None:
        made = []
        try:
            for number in range(2 * files):
                os.mkdir(f"probe-{number}")
                made.append(number)
        finally:
            for number in made:
                os.rmdir(f"probe-{number}")

    def make_call(number: int) -> None:
        if (descriptor := libc.syscall(ctypes.c_long(number), 0, 0, 0)) < 0:
            raise OSError
        os.close(descriptor)

    def see_others() -> None:
        if os.getpid() > processes:  # a namespace of processes counts from one
            return
        raise OSError

    def write_outside() -> None:
        os.mkdir("/mark")
        os.rmdir("/mark")

    actions: dict[str, Callable[[], object]] = {
        "reads files of the host": (Path(folder) / "secret").read_text,
        "writes files of the host": (Path(folder) / "mark").touch,
        "writes outside its folder": write_outside,
        "connects to the host": connect,
        "sees processes of the host": see_others,
        "takes more memory than it may": lambda: bytearray(2 * memory_bytes),
        "makes semaphores that outlive it": make_semaphores,
        "holds memory that nothing maps": share_memory,
        "widens pipes": widen_pipe,
        "makes more files than it may": make_files,
        **{f"calls {name}": functools.partial(make_call, calls[name]) for name in calls},
        "makes namespaces": make_namespace,
        "starts more processes than it may": start_processes,
    }
    found = []
    for name, action in actions.items():
        try:
            action()
        except (OSError, MemoryError):
            continue
        found.append(name)
    return found


def take_together(total_bytes: int) -> None:
    """Holds half as much again as all processes together may, in two, for some seconds."""
    done, report = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os.close(done)
            held = bytearray(b"x") * (total_bytes * 3 // 4)
            os.write(report, b"x")
            os.close(report)
            signal.pause()
            del held
    os.close(report)
    for _ in range(2):
        if not os.read(done, 1):  # the kernel has ended one of them
            sys.exit(KILLED)
    time.sleep(3)
