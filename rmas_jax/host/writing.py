"""Checks users' output files and folders before any work is done."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.host.errors import InputError, clipped
from rmas_jax.host.reading import check_regular

Error = type[InputError]


def check_output_file(
    path: str | Path,
    *,
    option: str,
    error: Error,
    suffixes: Sequence[str] = (),
    makes_folder: bool = False,
) -> None:
    """Refuses a path to which no regular file can be written.

    Args:
      path: of the file.
      option: name of the setting, for the message.
      error: class of the error.
      suffixes: allowed ones; empty: any.
      makes_folder: whether to make missing folders above it.
    """
    path = Path(path)
    where = f"{option} {clipped(str(path), 300)}"
    if suffixes and path.suffix.lower() not in suffixes:
        end = f"{path.suffix!r}" if path.suffix else "no extension"
        raise error(f"{where}: must end in {', '.join(suffixes)}, got {end}")
    if _mode(path, where, error) is None:
        _check_folder(path.resolve().parent, where, error, makes_folder=makes_folder)
        return
    try:
        check_regular(path, at_most=None, error=error)
    except InputError as reason:
        raise error(f"{option} {reason}") from None
    if not os.access(path, os.W_OK):
        raise error(f"{where}: must be writable, got a read-only file")


def check_output_folder(path: str | Path, *, option: str, error: Error) -> None:
    """Refuses a path that neither is nor can become a writable folder."""
    _check_folder(Path(path), f"{option} {clipped(str(path), 300)}", error, makes_folder=True)


def _check_folder(folder: Path, where: str, error: Error, *, makes_folder: bool) -> None:
    mode = _mode(folder, where, error)
    if mode is None:
        if not makes_folder:
            raise error(f"{where}: must be in an existing folder, got {clipped(str(folder), 300)}")
        if os.path.islink(folder):
            raise error(f"{where}: must be a folder, got a broken link")
        _check_folder(folder.absolute().parent, where, error, makes_folder=True)
    elif not stat.S_ISDIR(mode):
        raise error(f"{where}: must be a folder, got the file {clipped(str(folder), 300)}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise error(f"{where}: must be writable, got read-only {clipped(str(folder), 300)}")


def _mode(path: Path, where: str, error: Error) -> int | None:
    """The mode of a path; None if it does not exist."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise error(f"{where}: cannot be written ({reason.strerror})") from None
    except ValueError:  # NUL, or a lone surrogate
        raise error(f"{where}: must be a path without NUL and lone surrogates") from None
