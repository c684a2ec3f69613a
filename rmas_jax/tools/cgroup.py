"""A memory cgroup for the sandbox, if the caller may make one (version 2, delegated).

The kernel then counts memory that the sandbox's sum misses: growth between two samples, pipes,
sockets, file locks, files. The other limits do not depend on it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
PREFIX = "rmas-python-"
_numbers = itertools.count()


@contextlib.contextmanager
def memory_group(total_bytes: int) -> Iterator[Path | None]:
    """A new cgroup without swap, removed on exit; None if not possible."""
    group = _make(total_bytes)
    try:
        yield group
    finally:
        if group is not None:
            with contextlib.suppress(OSError):  # in use: a later call removes it
                group.rmdir()


def _make(total_bytes: int) -> Path | None:
    parent = _parent()
    if parent is None:
        return None
    _sweep(parent)
    group = parent / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        if (swap := group / "memory.swap.max").exists():  # if swap is counted
            swap.write_text("0")
        (group / "memory.max").write_text(str(total_bytes))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    return group


def _parent() -> Path | None:
    """The nearest cgroup above the caller's that limits memory and that the caller may write to."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None or ".." in Path(own).parts:
        return None
    for folder in (place := MOUNT / own, *place.parents):
        if not folder.is_relative_to(MOUNT):
            return None
        try:
            controllers = (folder / "cgroup.subtree_control").read_text().split()
        except OSError:
            return None
        if "memory" in controllers:
            may = os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)
            return folder if may else None
    return None


def _sweep(parent: Path) -> None:
    """Removes empty groups of killed processes; the kernel keeps groups in use."""
    for group in parent.glob(f"{PREFIX}*"):
        owner = group.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                group.rmdir()
