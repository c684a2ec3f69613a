"""What an evaluation has measured so far, on disk: `items.jsonl` and `results.json`."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmas_jax.processes import from_first
from rmas_jax.whole_files import write_whole

Row = dict[str, Any]
KEY = ("method", "rounds", "split", "seed")  # what makes a measurement


def measurement(row: Row) -> tuple[Any, ...]:
    """The measurement that a row of either file belongs to."""
    return tuple(row[column] for column in KEY)


class Record:
    """The two files, kept so that an evaluation can stop anywhere and go on later.

    Items are appended batch by batch; a measurement counts as done once its row stands in
    `results.json` and all its items in `items.jsonl`. What an interruption left half done is
    dropped on opening. The first process reads and writes, and all of them know the same rows.
    """

    def __init__(self, directory: Path):
        self.items_path, self.results_path = directory / "items.jsonl", directory / "results.json"
        self.rows: list[Row] = from_first(self._open)

    def _open(self) -> list[Row]:
        """The rows of what is done; nothing else stays in either file."""
        self.items_path.parent.mkdir(parents=True, exist_ok=True)
        rows = json.loads(self.results_path.read_text()) if self.results_path.exists() else []
        items = _whole_lines(self.items_path) if self.items_path.exists() else []
        counts = collections.Counter(measurement(item) for item in items)
        rows = [row for row in rows if counts[measurement(row)] == row["n"]]
        done = {measurement(row) for row in rows}
        kept = [item for item in items if measurement(item) in done]
        write_whole(self.items_path, "".join(map(_line, kept)))
        write_whole(self.results_path, _table(rows))
        return rows

    def has(self, key: tuple[Any, ...]) -> bool:
        """Whether a measurement is done."""
        return any(measurement(row) == key for row in self.rows)

    def add_items(self, items: Sequence[Row]) -> None:
        """Appends items of a measurement under way."""

        def append() -> None:
            with self.items_path.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, items))

        from_first(append)

    def finish(self, row: Row) -> None:
        """Adds the row of a measurement whose items are all appended."""

        def add() -> list[Row]:
            rows = [*self.rows, row]
            write_whole(self.results_path, _table(rows))
            return rows

        self.rows = from_first(add)


def _table(rows: Sequence[Row]) -> str:
    return json.dumps(rows, indent=1) + "\n"


def _line(item: Row) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[Row]:
    """Items of a file; a last line without its end was cut off by an interruption."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]
