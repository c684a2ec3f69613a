"""Files and folders that a user names to be read: on this machine, or copies of those at a URL."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath

from rmas_jax.host.storage import StorageError, copies, errors_of, file_system, is_remote


def local_input(path: str | Path) -> Path:
    """The path to read: itself or, for a URL, this process's copy, made at its first use.

    Raises:
      StorageError: there is no such file or folder, it cannot be read, or a package is missing.
    """
    return _copied(path) if isinstance(path, str) and is_remote(path) else Path(path)


@functools.cache
def _copied(url: str) -> Path:
    system, root = file_system(url)
    scheme, _, place = url.rstrip("/").partition("://")
    local = copies() / "inputs" / scheme / place
    with errors_of(url):
        system.invalidate_cache()
        found = [root] if system.isfile(root) else system.find(root)
        if not found:
            raise StorageError(f"{url}: no such file or folder")
        for name in found:
            below = PurePosixPath(name).relative_to(root)
            if ".." in below.parts:
                raise StorageError(f"{url}: names must be below it, got {name}")
            (local / below).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(local / below))
    return local
