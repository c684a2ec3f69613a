"""Training curves on disk: JSON lines, and TensorBoard beside them if it is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rmas_jax.config import ConfigError
from rmas_jax.processes import is_first
from rmas_jax.whole_files import write_whole


class Curves:
    """Training curves as JSON lines; a resumed run drops what it will write again.

    Of several processes the first writes.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None):
        """Args:
          path: file of the JSON lines.
          tensorboard: folder of TensorBoard's event files; None writes none.

        Raises:
          ConfigError: tensorboardX is not installed.
        """
        self.path = path
        self.writes = is_first()
        self.board = None
        if tensorboard is not None and self.writes:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise ConfigError(
                    "runtime.tensorboard needs tensorboardX: pip install 'rmas_jax[logging]'"
                ) from None
            self.board = SummaryWriter(str(tensorboard))

    def truncate(self, series: str, step: int) -> None:
        """Drops rows of a series from `step` on, and a last line that was not written out."""
        if self.writes and self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines(True) if line[-1] == "\n"]
            rows = map(json.loads, lines)
            kept = [row for row in rows if row["series"] != series or row["step"] < step]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, stage: str, series: str, step: int, **values: Any) -> None:
        """Adds a row; values are numbers or lists of numbers, None where one is not known."""
        if not self.writes:
            return
        row = {"stage": stage, "series": series, "step": step, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in values.items():
                for i, number in enumerate(np.atleast_1d(value)):
                    part = f"/{i + 1}" if isinstance(value, list) else ""
                    if number is not None:
                        self.board.add_scalar(f"{series}/{name}{part}", number, step)
            self.board.flush()
