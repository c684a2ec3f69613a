"""What an evaluation has measured so far, on disk: `items.jsonl` and `results.json`."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEY = ("method", "rounds", "split", "seed")  # what makes a measurement


def measurement(row: Row) -> tuple[Any, ...]:
    """The measurement that a row of either file belongs to."""
    return tuple(row[column] for column in KEY)


class Record:
    """The two files, kept so that an evaluation can stop anywhere and go on later.

    Items are appended batch by batch; a measurement counts as done once its row stands in
    `results.json` and all its items in `items.jsonl`. What an interruption left half done is
    dropped on opening.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.items_path, self.results_path = directory / "items.jsonl", directory / "results.json"
        rows = json.loads(self.results_path.read_text()) if self.results_path.exists() else []
        items = _whole_lines(self.items_path) if self.items_path.exists() else []
        counts = collections.Counter(measurement(item) for item in items)
        self.rows: list[Row] = [row for row in rows if counts[measurement(row)] == row["n"]]
        done = {measurement(row) for row in self.rows}
        kept = [item for item in items if measurement(item) in done]
        _replace(self.items_path, "".join(map(_line, kept)))
        _replace(self.results_path, json.dumps(self.rows, indent=1) + "\n")

    def has(self, key: tuple[Any, ...]) -> bool:
        """Whether a measurement is done."""
        return any(measurement(row) == key for row in self.rows)

    def add_items(self, items: Sequence[Row]) -> None:
        """Appends items of a measurement under way."""
        with self.items_path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, items))

    def finish(self, row: Row) -> None:
        """Adds the row of a measurement whose items are all appended."""
        self.rows.append(row)
        _replace(self.results_path, json.dumps(self.rows, indent=1) + "\n")


def _line(item: Row) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[Row]:
    """Items of a file; a last line without its end was cut off by an interruption."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]


def _replace(path: Path, text: str) -> None:
    """Writes a file as a whole: a reader sees the old text or the new one."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
