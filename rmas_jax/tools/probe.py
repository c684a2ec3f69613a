"""Tests a sandbox from inside: tries actions that must fail."""

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
    """Forbidden actions that succeed here; none in a secure sandbox.

    Args:
      folder: a folder of the host with a file `secret`.
      port: a port of the host's loopback with a listening server.
      processes: limit on processes.
      memory_bytes: limit on the memory of a process.
      files: limit on the files of the sandbox's folder.
      calls: name -> number of forbidden system calls that succeed without arguments elsewhere.
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
        if os.getpid() <= processes:  # a new namespace of processes counts from one
            raise OSError

    def write_outside() -> None:
        os.mkdir("/made-outside")
        os.rmdir("/made-outside")

    actions: dict[str, Callable[[], object]] = {
        "reads files of the host": (Path(folder) / "secret").read_text,
        "writes files of the host": (Path(folder) / "made-outside").touch,
        "writes outside its folder": write_outside,
        "connects to the host": connect,
        "sees processes of the host": see_others,
        "exceeds its limit on memory": lambda: bytearray(2 * memory_bytes),
        "makes semaphores that outlive it": make_semaphores,
        "holds shared memory without a mapping": share_memory,
        "widens pipes": widen_pipe,
        "exceeds its limit on files": make_files,
        **{f"calls {name}": functools.partial(make_call, calls[name]) for name in calls},
        "makes namespaces": make_namespace,
        "exceeds its limit on processes": start_processes,
    }
    found = []
    for name, action in actions.items():
        try:
            action()
        except (OSError, MemoryError):
            continue
        found.append(name)
    return found


def exceed_total(total_bytes: int) -> None:
    """Holds 1.5 times the limit on total memory in two processes, for some seconds."""
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
        if not os.read(done, 1):  # the kernel has killed one of them
            sys.exit(KILLED)
    time.sleep(3)
