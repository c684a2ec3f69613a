"""Looks for holes in a sandbox, from inside it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000


def holes(folder: str, port: int, processes: int, memory_bytes: int) -> list[str]:
    """What code can do here that it must not be able to; empty in a sandbox that holds.

    Args:
      folder: one of the host's that holds a file `secret`.
      port: where somebody listens on the host's loopback.
      processes: how many there may be.
      memory_bytes: how much of it a process may have.
    """

    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    def start_processes() -> None:
        for _ in range(2 * processes):
            if os.fork() == 0:
                signal.pause()

    def make_namespace() -> None:
        if ctypes.CDLL(None).unshare(CLONE_NEWUSER) != 0:
            raise OSError

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
        "takes more memory than it may": lambda: mmap.mmap(-1, 2 * memory_bytes),
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
