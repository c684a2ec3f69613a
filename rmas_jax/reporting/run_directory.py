"""Reads the files that a run left behind, and checks them once, here."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rmas_jax.evaluation.record import measurement
from rmas_jax.host.errors import InputError
from rmas_jax.reporting.results import Row

# Columns that a report reads; files may have more. `float` also takes whole numbers.
RESULT_COLUMNS = {
    "method": str,
    "rounds": int,
    "latent_steps": int,
    "split": str,
    "n": int,
    "correct": int,
    "accuracy": float,
    "ci_low": float,
    "ci_high": float,
    "tokens_per_item": float,
    "steps_per_item": float,
    "seconds_per_item": float,
    "seed": int,
}
ITEM_COLUMNS = {
    "method": str,
    "rounds": int,
    "split": str,
    "seed": int,
    "id": object,
    "correct": bool,
    "difficulty": int,
}
METRIC_COLUMNS = {"stage": str, "series": str, "step": int, "loss": float}
GRADIENT_COLUMNS = {"link": str, "round": int, "channel": str, "norm": float}
# Training may diverge and a gradient may overflow: the report then shows it.
MAY_BE_INFINITE = {"loss", "norm"}


class RunFileError(InputError):
    """A file of a run cannot be reported; the message names the file, the place and the column."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Contents of a run directory; a missing file is an empty field and a note."""

    directory: Path
    results: list[Row]
    items: list[Row]
    metrics: list[Row]
    gradients: list[Row]
    environment: dict[str, Any]
    config: str
    timings: dict[str, float]
    notes: list[str]  # what is missing or left out, for the reader


def read_run(directory: str | Path) -> Run:
    """Reads and checks a run directory.

    Raises:
        RunFileError: there is no file of a run, or one is not JSON, lacks a column or contradicts
            itself.
    """
    reader = _Reader(Path(directory))
    results = reader.rows("results.json", RESULT_COLUMNS, "claims, accuracy and cost")
    items = reader.lines("items.jsonl", ITEM_COLUMNS, "paired comparisons and difficulty")
    items, unfinished = _finished(items, results)
    reader.notes += unfinished
    run = Run(
        directory=reader.directory,
        results=results,
        items=items,
        metrics=reader.lines("metrics.jsonl", METRIC_COLUMNS, "training curves"),
        gradients=reader.rows("gradients.json", GRADIENT_COLUMNS, "gradient norms"),
        environment=reader.mapping("environment.json", "the environment"),
        config=reader.text("config.yaml", "the configuration") or "",
        timings=reader.mapping("timings.json", "timings"),
        notes=reader.notes,
    )
    if not reader.found:
        raise RunFileError(f"{directory}: no file of a run here (results.json, items.jsonl, ...)")
    _check_results(reader.directory / "results.json", run.results)
    return run


class _Reader:
    """Reads files by kind and keeps a note of each one that is absent or empty."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.notes: list[str] = []
        self.found = False

    def text(self, name: str, part: str) -> str | None:
        path = self.directory / name
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self.notes.append(f"{name} is missing: no {part}.")
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RunFileError(f"{path}: cannot be read ({error})") from error
        self.found = True
        return text

    def rows(self, name: str, columns: dict[str, type], part: str) -> list[Row]:
        text = self.text(name, part)
        if text is None:
            return []
        path = self.directory / name
        rows = _parse(text, path)
        if not isinstance(rows, list):
            raise RunFileError(f"{path}: is a JSON {_json_type(rows)}, must be a list of rows")
        return self._checked(name, list(enumerate(rows, 1)), columns, part, "row")

    def lines(self, name: str, columns: dict[str, type], part: str) -> list[Row]:
        text = self.text(name, part)
        if text is None:
            return []
        path = self.directory / name
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if lines and not text.endswith("\n"):
            # A run that was killed while writing leaves half a line, and that one only.
            number, line = lines[-1]
            try:
                json.loads(line)
            except json.JSONDecodeError:
                self.notes.append(f"{name} line {number} is cut off and left out.")
                lines.pop()
        parsed = [(number, _parse(line, path, f" line {number}")) for number, line in lines]
        return self._checked(name, parsed, columns, part, "line")

    def mapping(self, name: str, part: str) -> dict[str, Any]:
        text = self.text(name, part)
        if text is None:
            return {}
        mapping = _parse(text, self.directory / name)
        if not isinstance(mapping, dict):
            raise RunFileError(
                f"{self.directory / name}: is a JSON {_json_type(mapping)}, must be an object"
            )
        return mapping

    def _checked(
        self,
        name: str,
        rows: list[tuple[int, Any]],
        columns: dict[str, type],
        part: str,
        unit: str,
    ) -> list[Row]:
        for number, row in rows:
            _check_row(f"{self.directory / name} {unit} {number}", row, columns)
        if not rows:
            self.notes.append(f"{name} is empty: no {part}.")
        return [row for _, row in rows]


def _finished(items: list[Row], results: list[Row]) -> tuple[list[Row], list[str]]:
    """Items of measurements that have all of them and a row, and a note on each of the others."""
    n = {measurement(row): row["n"] for row in results}
    counts = collections.Counter(map(measurement, items))
    kept = [item for item in items if counts[measurement(item)] == n.get(measurement(item))]
    notes = []
    for key, count in counts.items():
        if count != n.get(key):
            method, rounds, split, seed = key
            has = f"{n[key]}" if key in n else "no row"
            notes.append(
                f"items.jsonl has {count} items of {method} at {rounds} rounds on {split}, seed "
                f"{seed}, results.json {has}: an unfinished measurement, left out item by item."
            )
    return kept, notes


def _parse(text: str, path: Path, place: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunFileError(f"{path}{place}: is not JSON ({error})") from error


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _check_row(where: str, row: Any, columns: dict[str, type]) -> None:
    if not isinstance(row, dict):
        raise RunFileError(f"{where}: is a JSON {_json_type(row)}, must be an object")
    missing = [column for column in columns if column not in row]
    if missing:
        names = ", ".join(map(repr, missing))
        raise RunFileError(f"{where}: missing column{'s' * (len(missing) > 1)} {names}")
    for column, kind in columns.items():
        value = row[column]
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif kind is int:
            fits = isinstance(value, int) and not isinstance(value, bool)
        else:
            fits = isinstance(value, kind)
        if not fits:
            raise RunFileError(f"{where}: column {column!r} is {value!r}, must be {kind.__name__}")
        if kind is float and column not in MAY_BE_INFINITE and not math.isfinite(value):
            raise RunFileError(f"{where}: column {column!r} is {value}, must be finite")


def _check_results(path: Path, rows: list[Row]) -> None:
    """What no column type can say: counts fit each other, and no measurement is there twice."""
    seen: dict[tuple[str, str, int, int], int] = {}
    latent_steps: dict[tuple[str, str, int], int] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path} row {number}"
        n, correct, accuracy = row["n"], row["correct"], row["accuracy"]
        if n < 1 or not 0 <= correct <= n:
            raise RunFileError(f"{where}: column 'correct' is {correct} of 'n' {n}")
        if abs(accuracy - correct / n) > 1e-3:  # rounding in the file is fine
            raise RunFileError(
                f"{where}: column 'accuracy' is {accuracy}, but {correct} of {n} are correct "
                f"({correct / n:.4f})"
            )
        key = (row["split"], row["method"], row["rounds"])
        name = f"{row['method']} at {row['rounds']} rounds on {row['split']}"
        first = seen.setdefault((*key, row["seed"]), number)
        if first != number:
            raise RunFileError(f"{where}: {name}, seed {row['seed']}, is already in row {first}")
        if latent_steps.setdefault(key, row["latent_steps"]) != row["latent_steps"]:
            raise RunFileError(
                f"{where}: column 'latent_steps' is {row['latent_steps']} for {name}, elsewhere "
                f"{latent_steps[key]}; seeds can only be pooled at one number"
            )
