"""Training curves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Curves:
    """Training curves as JSON lines; a resumed run drops what it will write again."""

    def __init__(self, path: Path):
        self.path = path

    def truncate(self, series: str, step: int) -> None:
        """Drops rows of a series from `step` on."""
        if self.path.is_file():
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            kept = [row for row in rows if row["series"] != series or row["step"] < step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, stage: str, series: str, step: int, **values: Any) -> None:
        """Adds a row."""
        row = {"stage": stage, "series": series, "step": step, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
