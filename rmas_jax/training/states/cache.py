"""States of role texts on disk: an agent reads its texts once for any number of runs.

FOLDER/KEY/states.npy   [n, D], opened as a memory map; bfloat16 is stored as two bytes
FOLDER/KEY/entry.json   its checksum; the folder's time is that of its last use
FOLDER/partial/         an unfinished entry of a current or killed run
FOLDER/lock             held while a run looks for an entry or writes one
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from rmas_jax import __version__
from rmas_jax.config import ConfigError
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.preemption import end_if_due
from rmas_jax.host.processes import broadcast_from_first, is_first, on_all
from rmas_jax.host.reading import check_regular, read_json
from rmas_jax.host.storage import Mirror
from rmas_jax.training.data.encoding import Dialogues

GIBIBYTE = 2**30
OVERHEAD = 4096  # bytes of an entry beside its states, at most
CHECKED_AT_ONCE = 2**26  # bytes
STATES, RECORD, PARTIAL, LOCK = "states.npy", "entry.json", "partial", "lock"
WAIT_S = 1  # between checks whether another run has released the lock
FOUND, MAKE, KEEP_IN_MEMORY, WAIT = range(4)

log = logging.getLogger(__name__)


@dataclasses.dataclass
class StateCache:
    """States by their sources: the agent, the tokens and the dtype.

    Atomic: an entry is complete or missing; its checksum is verified before use. The mesh is not
    part of the key, though it may change the last bits. Runs may share a folder; one waits while
    another reads texts, and then uses its entry. The first process of a run writes and decides; all
    processes must see the folder.
    """

    folder: Path  # made on first use
    # Disk budget in GiB for all entries: the least recently used are removed, except those that
    # this object has returned. States beyond it stay in memory; 0 disables the cache.
    limit_gib: float
    agents: Mapping[str, str]  # role -> digest of the agent with its weights
    mirror: Mirror | None = None  # the folder on object storage, from which nothing is removed
    used: set[str] = dataclasses.field(default_factory=set)  # keys of returned entries
    in_memory: dict[str, int] = dataclasses.field(default_factory=dict)  # role -> bytes not on disk

    @property
    def limit(self) -> int:
        """Maximum bytes of all entries together."""
        return int(self.limit_gib * GIBIBYTE)

    def states(
        self,
        role: str,
        dialogues: Dialogues,
        like: jax.ShapeDtypeStruct,
        chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    ) -> np.ndarray:
        """The states of a role's texts, read-only, from the disk if available.

        Args:
          role: of the agent.
          dialogues: the agent's texts.
          like: shape [n, D] and dtype of the states.
          chunks: makes the states, see `fill`; unused if the entry is found.

        Raises:
          ConfigError: the states fit neither on the disk nor in memory.
          FileNotFoundError: a process of the run does not see the folder.
          PreemptedError: SIGTERM during reading; the partial entry is dropped.
        """
        key = entry_key(self.agents[role], dialogues, like)
        with contextlib.ExitStack() as stack:
            plan = broadcast_from_first(lambda: self._plan(stack, key, role, like))
            if plan == WAIT:
                log.info("waits for another run, which reads or fills %s", self.folder)
            while plan == WAIT:
                end_if_due("while another run read texts")
                time.sleep(WAIT_S)
                plan = broadcast_from_first(lambda: self._plan(stack, key, role, like))
            if plan == KEEP_IN_MEMORY:
                stack.close()  # release the lock: no other run waits for this
                self.in_memory[role] = _size(like)
                on_all(lambda: check_room(self.in_memory))
                return fill(np.empty(like.shape, like.dtype), chunks)
            if plan == MAKE:
                self._read(like, chunks)
                broadcast_from_first(lambda: self._finish(key))
            self.used.add(key)
            # Open before the lock is released: after that, other runs may remove the entry.
            return on_all(lambda: self._open(key, like))

    def _plan(
        self, stack: contextlib.ExitStack, key: str, role: str, like: jax.ShapeDtypeStruct
    ) -> int:
        """State of the entry: found, ready to fill, without room, or locked by another run."""
        try:
            return self._prepare(stack, key, role, like)
        except (OSError, ConfigError) as error:  # read-only, full, without locks, not a cache
            log.warning("states of %s are kept in memory: %s", role, error)
            return KEEP_IN_MEMORY

    def _prepare(
        self, stack: contextlib.ExitStack, key: str, role: str, like: jax.ShapeDtypeStruct
    ) -> int:
        """Takes the lock, if free, and finds the entry or makes an empty one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / LOCK).exists():  # opening a pipe would wait for its reader
            check_regular(self.folder / LOCK, at_most=None, error=ConfigError)
        lock = stack.enter_context((self.folder / LOCK).open("w"))  # closing it unlocks it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stack.close()
            return WAIT
        partial, entry = self.folder / PARTIAL, self.folder / key
        if self.mirror is not None:
            self.mirror.fetch(key)
        shutil.rmtree(partial, ignore_errors=True)  # of a killed run, as this one has the lock
        if entry.exists():
            if (reason := _damage(entry, like)) is None:
                _note_use(entry)
                return FOUND
            log.warning("states in %s are damaged and read again: %s", entry, reason)
            shutil.rmtree(entry)
        if not self._make_room(_size(like), role):
            return KEEP_IN_MEMORY
        stack.callback(shutil.rmtree, partial, ignore_errors=True)  # unless it becomes the entry
        partial.mkdir()
        np.lib.format.open_memmap(partial / STATES, "w+", like.dtype, like.shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with (partial / STATES).open("r+b") as file:  # a full disk fails here, not later
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        return MAKE

    def _make_room(self, size: int, role: str) -> bool:
        """Removes the least recently used entries; False, without removing any, if not enough."""
        entries = sorted(
            (entry for entry in self.folder.iterdir() if (entry / RECORD).exists()),
            key=lambda entry: entry.stat().st_mtime_ns,
        )
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
        in_use = sum(sizes[entry] for entry in entries if entry.name in self.used)
        if in_use + size > self.limit:
            log.info(
                "states of %s are kept in memory: they take %.2f GiB, and inner.cache_gib leaves "
                "%.2f GiB beside those of other roles",
                role,
                size / GIBIBYTE,
                max(0, self.limit - in_use) / GIBIBYTE,
            )
            return False
        total = sum(sizes.values())
        for entry in entries:
            if total + size > self.limit and entry.name not in self.used:
                shutil.rmtree(entry)
                total -= sizes[entry]
        return True

    def _open(self, key: str, like: jax.ShapeDtypeStruct) -> np.ndarray:
        if self.mirror is not None:
            self.mirror.fetch(key)  # other processes than the first have their own copies
        return _open(self.folder / key, like)

    def _read(
        self, like: jax.ShapeDtypeStruct, chunks: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Fills the entry; other processes than the first only take part in the reading."""
        if is_first():
            states = np.load(self.folder / PARTIAL / STATES, mmap_mode="r+")
            fill(states.view(like.dtype), chunks)
        else:
            collections.deque(chunks, maxlen=0)

    def _finish(self, key: str) -> None:
        """Publishes a filled entry."""
        partial = self.folder / PARTIAL
        checksum = _checksum(np.load(partial / STATES, mmap_mode="r"))
        write_atomic(partial / RECORD, json.dumps({"crc32": checksum}))
        _note_use(partial)
        partial.rename(self.folder / key)
        if self.mirror is not None:
            self.mirror.publish(key)


def fill(out: np.ndarray, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Writes chunks, row numbers [k] and rows [k, D], into `out` [n, D], and returns it."""
    for numbers, rows in chunks:
        out[numbers] = rows
    return out


def check_room(sizes: Mapping[str, int], limit: int = 0) -> None:
    """Checks that states fit on the disk or in memory.

    Args:
      sizes: role -> bytes of its states, in order of creation.
      limit: disk budget in bytes; states beyond it stay in memory.

    Raises:
      ConfigError: states beyond the disk budget exceed the machine's memory.
    """
    kept, memory = {}, physical_memory()
    for role, size in sizes.items():
        if size + OVERHEAD <= limit:
            limit -= size + OVERHEAD
        else:
            kept[role] = size
    if sum(kept.values()) > memory:
        named = ", ".join(f"{role}: {size / GIBIBYTE:.2f} GiB" for role, size in kept.items())
        raise ConfigError(
            f"states of texts in memory must be at most {memory / GIBIBYTE:.2f} GiB (this "
            f"machine's), got {named}: lower inner.items or inner.lists, or raise inner.cache_gib "
            "to keep them on the disk"
        )


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def entry_key(agent: str, dialogues: Dialogues, like: jax.ShapeDtypeStruct) -> str:
    """A digest of all inputs of the states."""
    digest = hashlib.sha256(f"{__version__} {agent} {like.shape} {like.dtype}".encode())
    for array in (dialogues.tokens.ids, dialogues.tokens.starts, dialogues.text_lengths):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _note_use(entry: Path) -> None:
    """Sets an entry's time; a file system's own times may be some milliseconds late."""
    now = time.time_ns()
    os.utime(entry, ns=(now, now))


def _size(like: jax.ShapeDtypeStruct) -> int:
    return math.prod(like.shape) * like.dtype.itemsize + OVERHEAD


def _open(entry: Path, like: jax.ShapeDtypeStruct) -> np.ndarray:
    return np.asarray(np.load(entry / STATES, mmap_mode="r")).view(like.dtype)


def _damage(entry: Path, like: jax.ShapeDtypeStruct) -> str | None:
    """The damage of an entry; None: intact."""
    try:
        record = read_json(entry / RECORD, at_most=OVERHEAD, error=ConfigError)
        check_regular(entry / STATES, at_most=None, error=ConfigError)  # a pipe never ends
        states = _open(entry, like)
        if states.shape != like.shape:
            return f"their shape must be {like.shape}, got {states.shape}"
        if _checksum(states) != record["crc32"]:
            return "their checksum differs"
    except Exception as error:  # damaged files raise many kinds
        return str(error)
    return None


def _checksum(states: np.ndarray) -> int:
    crc, rows = 0, max(1, CHECKED_AT_ONCE // max(1, states[:1].nbytes))
    for start in range(0, len(states), rows):
        part = np.ascontiguousarray(states[start : start + rows])
        crc = zlib.crc32(part.view(np.uint8).data, crc)
    return crc
