"""Training curves on disk: JSON lines, and optionally TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmas_jax.config import ConfigError
from rmas_jax.host.atomic import append, write_atomic
from rmas_jax.host.checksums import seal, unseal
from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.processes import broadcast_from_first, is_first
from rmas_jax.host.reading import GIBIBYTE, parse_json, read_bytes

FILE_LIMIT = 2 * GIBIBYTE
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Training curves as JSON lines; a resumed run drops rows that it will write again.

    The first process writes.
    """

    path: Path  # file of the JSON lines
    board: Any = None  # tensorboardX's SummaryWriter of the same numbers; see `open_curves`

    def truncate(self, series: str, step: int) -> None:
        """Drops rows of a series from `step` on, and damaged lines, with a warning.

        Drops an incomplete last line without one.
        """
        broadcast_from_first(lambda: self._truncate(series, step))

    def _truncate(self, series: str, step: int) -> None:
        if not self.path.exists():
            return
        try:
            raw = read_bytes(self.path, at_most=FILE_LIMIT, error=InputError)
        except InputError as error:
            way_out = "put back a copy, or delete it: the curves so far are then lost"
            raise InputError(f"{error}; {way_out}") from None
        kept = [
            json.dumps(seal(row)) + "\n"
            for row in self._rows(raw)
            if row["series"] != series or row["step"] < step
        ]
        if (content := "".join(kept).encode()) != raw:
            write_atomic(self.path, content)

    def _rows(self, raw: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), 1):
            source = f"{self.path}, line {number}"
            try:
                row = parse_json(line, source=source, error=InputError)
                if not (
                    isinstance(row, dict)
                    and isinstance(row.get("series"), str)
                    and isinstance(row.get("step"), int)
                ):
                    raise InputError(
                        f"{source}: must be a row with a series and a step, got {shown(row)}"
                    )
                yield unseal(row, source=source, error=InputError)
            except InputError as error:
                log.warning("%s; this row of the curves is left out", error)

    def write(self, loop: str, series: str, step: int, **values: Any) -> None:
        """Adds a row.

        Args:
          loop: "inner" or "outer".
          series: name of the curve: a link's or a phase's.
          step: number of the step, from 0.
          **values: numbers or lists of numbers, None where unknown.
        """
        if not is_first():
            return
        row = {"loop": loop, "series": series, "step": step, **values}
        append(self.path, json.dumps(seal(row)) + "\n")
        if self.board is not None:
            for name, value in values.items():
                for i, number in enumerate(np.atleast_1d(value)):
                    part = f"/{i + 1}" if isinstance(value, list) else ""
                    if number is not None:
                        self.board.add_scalar(f"{series}/{name}{part}", number, step)
            self.board.flush()


def open_curves(path: Path, *, tensorboard: Path | None = None) -> Curves:
    """Curves in a file and, in the process that writes, for TensorBoard.

    Args:
      path: file of the JSON lines; made with the first row.
      tensorboard: folder of TensorBoard's event files, made here; None: no such files.

    Raises:
      ConfigError: tensorboardX is not installed.
    """
    if tensorboard is None or not is_first():
        return Curves(path)
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "runtime.tensorboard needs tensorboardX: pip install 'rmas_jax[logging]'"
        ) from None
    return Curves(path, SummaryWriter(str(tensorboard)))


def as_values(tree: Any) -> dict[str, Any]:
    """Nested metrics -> values of a row: {"a/b": number or list}, of six significant digits.

    Non-finite numbers become None, as JSON has none.
    """

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(v) for v in value]
        if isinstance(value, int):
            return value
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return {
        "/".join(str(key.key) for key in path): number(np.asarray(leaf).tolist())
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
