"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

PARTIAL = ".partial"  # behind a file's name while it is written; a killed run may leave one


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8: a reader, and a kill in between, meet the old or the new one.

    Only one process may write it at a time.
    """
    half = path.with_name(path.name + PARTIAL)
    half.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(half, path)
