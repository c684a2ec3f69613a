"""Recorded replies of services, in files of JSON lines, so that a run is repeatable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rmas_jax.host.json_rows import drop_half_line, read_json_rows
from rmas_jax.host.reading import Error

Reply = TypeVar("Reply")


def read_recording(
    path: Path,
    parse: Callable[[Any], tuple[str, Reply]],
    *,
    replays: bool,
    content: str,
    error: Error,
) -> dict[str, Reply]:
    """The recorded replies, by request; `append_line` adds one.

    Args:
      path: of the file; it may be missing, unless it is replayed.
      parse: a row -> its request and reply; raises ValueError with the reason for any other row.
      replays: whether the file must exist and stays as it is. Else an incomplete last line, the
        trace of an interruption, is dropped.
      content: of the file, for errors: "searches".
      error: class of the error.

    Raises:
      FileNotFoundError: nothing to replay.
      error: not a regular file, or a line is unreadable; names file and line.
    """
    if replays and not path.exists():
        raise FileNotFoundError(2, f"no recorded {content} here", str(path))
    if not replays:
        drop_half_line(path, error=error)
    if not path.exists():
        return {}
    recorded = {}
    for number, row in read_json_rows(path, error=error):
        try:
            if isinstance(row, ValueError):
                raise row
            request, reply = parse(row)
        except ValueError as reason:
            raise error(
                f"{path}, line {number}: must be one of the recorded {content} ({reason}); "
                "remove the line"
            ) from reason
        recorded[request] = reply
    return recorded
