"""Folders on object storage, such as gs://BUCKET/runs, by copies on the local disk.

Object storage has no locks, no renames and no appends. A folder there has a copy for each process,
which all readers and writers of files use. `Mirror.pull` makes the copy, `Mirror.push` uploads the
changed files; each upload is atomic. A `Lease` admits one start of a run at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from rmas_jax.host.atomic import PARTIAL
from rmas_jax.host.errors import InputError

LEASE = "lease.json"
LEASE_S = 60  # without a renewal, until another start may take the lease
RENEW_S = 15
PUSH_S = 60  # between uploads during a step
URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_flushed: list[Callable[[], None]] = []  # pushes of the folders that this process writes


class StorageError(InputError):
    """Object storage cannot be used, or another start of the run writes there."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL of object storage."""
    return URL.fullmatch(os.fspath(path)) is not None


@functools.cache
def copies() -> Path:
    """The folder of this process's copies, in the user's cache, removed at its end."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "rmas_jax" / "storage"
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():  # of processes that were killed
        if other.name.isdecimal() and not _is_running(int(other.name)):
            shutil.rmtree(other, ignore_errors=True)
    own = folder / str(os.getpid())
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def local_copy(path: str) -> Path:
    """The local folder to use for a path: itself or, for a URL, this process's copy of it."""
    if not is_remote(path):
        return Path(path)
    scheme, _, place = path.rstrip("/").partition("://")
    return copies() / scheme / place


def child(path: str, *names: str) -> str:
    """A path below a local folder or a URL."""
    return "/".join([path.rstrip("/"), *names]) if is_remote(path) else str(Path(path, *names))


def flush() -> None:
    """Uploads the changed files of the folders that this process writes; without these, nothing.

    Raises:
      StorageError: the upload fails, or another start has taken the lease.
    """
    for push in _flushed:
        push()


@dataclasses.dataclass
class Mirror:
    """A folder on object storage and its copy; see `open_mirror`."""

    url: str
    local: Path
    system: Any  # fsspec's file system
    root: str  # of the folder in it
    apart: tuple[str, ...] = ()  # names of subfolders that are not copied
    # Name -> version there (None: unknown) and version here, when both were last the same.
    known: dict[str, tuple[str | None, Any]] = dataclasses.field(default_factory=dict)
    mutex: Any = dataclasses.field(default_factory=threading.Lock)

    def pull(self) -> None:
        """Makes the copy equal to the folder; reads files that were changed here or there."""
        with self.mutex, errors_of(self.url):
            found = self._found()
            for name in self._files().keys() - found.keys():
                (self.local / name).unlink()
            for name, version in found.items():
                if self.known.get(name) != (version, _version(self.local / name)):
                    self._read(name)
                    self.known[name] = version, _version(self.local / name)
            self.known = {name: self.known[name] for name in found}

    def push(self) -> None:
        """Uploads changed files, in the order of their changes, and removes files that are gone.

        A file is never newer there than those written before it: the newest is read first.
        """
        with self.mutex, errors_of(self.url):
            here = self._files()
            changed = [n for n, v in here.items() if self.known.get(n, (None, None))[1] != v]
            contents: dict[str, bytes] = {}
            for name in sorted(changed, key=lambda name: here[name], reverse=True):
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    here[name] = _version(self.local / name)
                    contents[name] = (self.local / name).read_bytes()
            for name, content in reversed(contents.items()):
                self.system.pipe_file(f"{self.root}/{name}", content)
                self.known[name] = None, here[name]
            for name in self.known.keys() - self._files().keys():
                self._remove(name)
                del self.known[name]

    def fetch(self, name: str) -> bool:
        """Reads a file or folder that never changes, unless it is here; False if there is none."""
        with self.mutex, errors_of(self.url):
            found = [other for other in self._found() if f"{other}/".startswith(f"{name}/")]
            for other in found:
                if not (self.local / other).exists():
                    self._read(other)
            return bool(found)

    def publish(self, name: str) -> None:
        """Uploads a file or a folder that never changes."""
        with self.mutex, errors_of(self.url):
            for other in sorted(self._files()):
                if f"{other}/".startswith(f"{name}/"):
                    self.system.put_file(str(self.local / other), f"{self.root}/{other}")

    def remove(self) -> None:
        """Removes the folder there."""
        with self.mutex, errors_of(self.url):
            if self._found():
                self.system.rm(self.root, recursive=True)

    def _found(self) -> dict[str, str]:
        """Version by name of the files there."""
        self.system.invalidate_cache()
        found = self.system.find(self.root, detail=True)
        versions = {
            path[len(self.root) + 1 :]: hashlib.sha256(str(sorted(info.items())).encode())
            for path, info in found.items()
            if info["type"] == "file"
        }
        return {name: v.hexdigest() for name, v in versions.items() if self._is_copied(name)}

    def _files(self) -> dict[str, Any]:
        """Version by name of the files here."""
        files = (file for file in self.local.rglob("*") if file.is_file())
        names = {file.relative_to(self.local).as_posix(): file for file in files}
        return {name: _version(file) for name, file in names.items() if self._is_copied(name)}

    def _is_copied(self, name: str) -> bool:
        is_apart = name.split("/")[0] in self.apart or name.startswith(LEASE)
        return bool(name) and not is_apart and not name.endswith(PARTIAL)

    def _read(self, name: str) -> None:
        file = self.local / name
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_name(file.name + PARTIAL)
        self.system.get_file(f"{self.root}/{name}", str(half))
        os.replace(half, file)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(f"{self.root}/{name}")


@functools.cache
def open_mirror(url: str, *, apart: tuple[str, ...] = ()) -> Mirror:
    """A folder on object storage and its copy, which `Mirror.pull` fills; one per process.

    Raises:
      StorageError: see `file_system`.
    """
    return Mirror(url.rstrip("/"), local_copy(url), *file_system(url), apart)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
      StorageError: the scheme is unknown, or its package is not installed.
    """
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise StorageError(f"{url}: {error}; pip install 'rmas_jax[storage]'") from None
    except ValueError as error:
        raise StorageError(f"{url}: {error}") from None
    return system, root.rstrip("/")


@contextlib.contextmanager
def written(mirror: Mirror) -> Iterator[None]:
    """Holds the lease of a folder; renews it and uploads changes in a thread, and at the end.

    Raises:
      StorageError: another start holds the lease, or has taken it.
    """
    lease, ended = Lease(mirror), threading.Event()
    failures: list[StorageError] = []
    lease.take()

    def push() -> None:
        if failures:
            raise failures[0]
        lease.check()
        mirror.push()

    def work() -> None:
        pushed = time.monotonic()
        while not ended.wait(RENEW_S):
            try:
                lease.renew()
                if time.monotonic() - pushed > PUSH_S:
                    push()
                    pushed = time.monotonic()
            except StorageError as error:
                if lease.is_lost or not lease.is_fresh:
                    failures.append(error)
                    return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    _flushed.append(push)
    try:
        yield
    finally:
        _flushed.remove(push)
        ended.set()
        thread.join()
        try:
            push()
        finally:
            lease.release()


class Lease:
    """A file beside a run's files that its holder renews: the sign of an active start.

    It is made only where there is none, which the storage does atomically. A start that finds one
    watches it for `LEASE_S`; one that is not renewed belongs to a killed start, and is replaced by
    the start that makes the file of this replacement, again where there is none.
    """

    def __init__(self, mirror: Mirror):
        self.mirror = mirror
        self.path = f"{mirror.root}/{LEASE}"
        self.token = uuid.uuid4().hex
        self.renewals = 0
        self.renewed = time.monotonic()
        self.is_lost = False

    def take(self) -> None:
        """Takes the lease.

        Raises:
          StorageError: another start holds it.
        """
        with errors_of(self.mirror.url):
            if self._make():
                return
            before, started = self._held(), time.monotonic()
            while time.monotonic() - started < LEASE_S:
                time.sleep(min(1.0, LEASE_S / 10))
                if (now := self._held()) != before:
                    if now is None and self._make():
                        return
                    self._refuse(now)
            self._replace(before)

    def renew(self) -> None:
        """Renews the lease; raises as `check`."""
        self.check()
        with errors_of(self.mirror.url):
            self._write()

    def check(self) -> None:
        """Raises StorageError if another start has taken the lease."""
        with errors_of(self.mirror.url):
            held = self._held()
        if held is None or held.get("token") != self.token:
            self.is_lost = True
            self._refuse(held)

    @property
    def is_fresh(self) -> bool:
        """Whether others still count this lease as held."""
        return time.monotonic() - self.renewed < LEASE_S

    def release(self) -> None:
        """Removes the lease, unless another start has taken it."""
        with errors_of(self.mirror.url):
            held = self._held()
            if held is not None and held.get("token") == self.token:
                self.mirror.system.rm_file(self.path)

    def _content(self) -> bytes:
        holder = f"{socket.gethostname()}, process {os.getpid()}"
        content = {"token": self.token, "holder": holder, "renewals": self.renewals}
        return json.dumps(content).encode()

    def _make(self, suffix: str = "") -> bool:
        try:
            self.mirror.system.pipe_file(self.path + suffix, self._content(), mode="create")
        except FileExistsError:
            return False
        self.renewed = time.monotonic()
        return True

    def _replace(self, before: dict[str, Any] | None) -> None:
        replacement = f".{(before or {}).get('token')}"
        if not self._make(replacement):
            self._refuse(before)
        try:
            if (now := self._held()) != before:  # another start has just replaced it
                self._refuse(now)
            self._write()
        finally:
            self.mirror.system.rm_file(self.path + replacement)

    def _write(self) -> None:
        self.renewals += 1
        self.mirror.system.pipe_file(self.path, self._content())
        self.renewed = time.monotonic()

    def _held(self) -> dict[str, Any] | None:
        self.mirror.system.invalidate_cache()
        try:
            found = json.loads(self.mirror.system.cat_file(self.path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _refuse(self, held: dict[str, Any] | None) -> None:
        holder = (held or {}).get("holder", "unknown")
        raise StorageError(
            f"{self.mirror.url} is in use by another start of this run ({holder}); wait for its "
            f"end, or choose another name (--set name=...); if none is active, remove {LEASE} there"
        )


@contextlib.contextmanager
def errors_of(url: str) -> Iterator[None]:
    """Storage errors as StorageError with the URL; libraries raise many kinds."""
    try:
        yield
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise StorageError(f"{url}: {type(error).__name__}: {reason}") from error


def _version(file: Path) -> Any:
    """Changes with a file's content."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
