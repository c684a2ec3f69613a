"""Reads the files that a run left behind, and checks them once, here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from rmas_jax.evaluation.record import ITEMS_CRC32, describe, items_checksum, measurement
from rmas_jax.host.checksums import unseal, unseal_yaml
from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.reading import GIBIBYTE, decode_text, parse_json, read_bytes
from rmas_jax.reporting.results import Row

Kind = type | UnionType
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
# Those that some rows of some runs have; null is as good as none.
OPTIONAL_METRIC_COLUMNS = {"accuracy": float, "seed": int}
OPTIONAL_RESULT_COLUMNS = {
    "unparsed": int,
    "at_limit": int,
    "answer_retry": int,
    "rollouts": int,
    "rollout_accuracy": float,
    "pass_at_k": float,
    ITEMS_CRC32: str,
}
ITEM_COLUMNS = {
    "method": str,
    "rounds": int,
    "split": str,
    "seed": int,
    "id": str | int,
    "correct": bool,
    "difficulty": int,
}
METRIC_COLUMNS = {"loop": str, "series": str, "step": int, "loss": float}
GRADIENT_COLUMNS = {"link": str, "round": int, "channel": str, "norm": float}
# Training may diverge and a gradient may overflow: the report then shows it.
LARGEST = 1e300  # beyond it, sums are infinite
NO_COLUMNS: Mapping[str, Kind] = {}
MAY_BE_INFINITE = {"loss", "norm"}
LARGEST_WHOLE = 2**53  # beyond it, figures lose digits
# A figure or a line of a table is made for each value of these columns.
GROUPS = ("method", "rounds", "split", "loop", "series", "link", "channel")
MOST_GROUPS = 100
FILE_LIMIT = 2 * GIBIBYTE
# What is done anew where a file is deleted, or what else helps.
RUN_AGAIN = "put back a copy, or delete it and run the same command again: "
WAYS_OUT = {
    "results.json": f"{RUN_AGAIN}everything is then measured anew",
    "items.jsonl": "run the same command again: what is damaged is then measured anew",
    "gradients.json": f"{RUN_AGAIN}the gradient norms are then measured anew",
    "timings.json": f"{RUN_AGAIN}the inner loop is then done anew, and what was measured stays",
    "metrics.jsonl": "put back a copy, or delete it: the report is then written without curves",
    "environment.json": "put back a copy, or delete it: the report is then written without it",
    "config.yaml": "put back a copy, or delete it: the report is then written without it",
}


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
    """Reads and checks a run directory, and writes nothing.

    Damaged lines of `metrics.jsonl`, which cannot be made anew, are left out with a note.

    Raises:
        RunFileError: there is no file of a run, or one is damaged, lacks a column or contradicts
            itself; the message says what mends it.
    """
    reader = _Reader(Path(directory))
    results = reader.rows(
        "results.json", RESULT_COLUMNS, "claims, accuracy and cost", OPTIONAL_RESULT_COLUMNS
    )
    items = reader.lines("items.jsonl", ITEM_COLUMNS, "paired comparisons and difficulty")
    with _way_out("results.json"):
        _check_results(reader.directory / "results.json", results)
    with _way_out("items.jsonl"):
        items, unfinished = _finished(items, results, reader.directory / "items.jsonl")
    reader.notes += unfinished
    run = Run(
        directory=reader.directory,
        results=results,
        items=items,
        metrics=reader.curves("metrics.jsonl", METRIC_COLUMNS, "training curves"),
        gradients=reader.rows("gradients.json", GRADIENT_COLUMNS, "gradient norms"),
        environment=reader.mapping("environment.json", "the environment"),
        config=reader.yaml("config.yaml", "the configuration"),
        timings=reader.mapping("timings.json", "timings", kind=float),
        notes=reader.notes,
    )
    if not reader.found:
        raise RunFileError(f"{directory}: no file of a run here (results.json, items.jsonl, ...)")
    return run


@contextlib.contextmanager
def _way_out(name: str) -> Iterator[None]:
    """Adds to an error what mends the file."""
    try:
        yield
    except RunFileError as error:
        raise RunFileError(f"{error}; {WAYS_OUT[name]}") from None


class _Reader:
    """Reads files by kind and keeps a note of each one that is absent or empty."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.notes: list[str] = []
        self.found = False

    def rows(
        self,
        name: str,
        columns: Mapping[str, Kind],
        part: str,
        optional: Mapping[str, Kind] = NO_COLUMNS,
    ) -> list[Row]:
        with _way_out(name):
            rows = self._json(name, part, empty=[])
            path = self.directory / name
            if not isinstance(rows, list):
                raise RunFileError(f"{path}: is a JSON {_json_type(rows)}, must be a list of rows")
            checked = [
                _checked(f"{path} row {number}", row, columns, optional)
                for number, row in enumerate(rows, 1)
            ]
            _check_groups(path, checked)
        return self._noted(name, checked, part)

    def lines(self, name: str, columns: Mapping[str, Kind], part: str) -> list[Row]:
        with _way_out(name):
            rows = [
                _checked(where, _parse(line, where), columns)
                for where, line in self._lines(name, part)
            ]
            _check_groups(self.directory / name, rows)
        return self._noted(name, rows, part)

    def curves(self, name: str, columns: Mapping[str, Kind], part: str) -> list[Row]:
        rows, damaged = [], []
        with _way_out(name):
            lines = self._lines(name, part)
        for where, line in lines:
            try:
                rows.append(_checked(where, _parse(line, where), columns, OPTIONAL_METRIC_COLUMNS))
            except RunFileError as error:
                damaged.append(f"{error}; this row of the curves is left out.")
        with _way_out(name):
            _check_groups(self.directory / name, rows)
        self.notes += damaged[:3]
        if len(damaged) > 3:
            self.notes.append(f"{name}: {len(damaged) - 3} more damaged lines are left out.")
        return self._noted(name, rows, part)

    def mapping(self, name: str, part: str, *, kind: Kind | None = None) -> dict[str, Any]:
        with _way_out(name):
            mapping = self._json(name, part, empty={})
            path = self.directory / name
            if not isinstance(mapping, dict):
                raise RunFileError(f"{path}: is a JSON {_json_type(mapping)}, must be an object")
            mapping = unseal(mapping, source=str(path), error=RunFileError)
            if kind is not None:
                _check_row(str(path), mapping, dict.fromkeys(mapping, kind), unit="entry")
        return mapping

    def yaml(self, name: str, part: str) -> str:
        with _way_out(name):
            text = self._text(name, part)
            if text is None:
                return ""
            return unseal_yaml(text, source=str(self.directory / name), error=RunFileError)

    def _json(self, name: str, part: str, *, empty: Any) -> Any:
        text = self._text(name, part)
        return empty if text is None else _parse(text, str(self.directory / name))

    def _text(self, name: str, part: str) -> str | None:
        raw, path = self._bytes(name, part), self.directory / name
        return None if raw is None else decode_text(raw, source=path, error=RunFileError)

    def _bytes(self, name: str, part: str) -> bytes | None:
        path = self.directory / name
        if not os.path.lexists(path):
            self.notes.append(f"{name} is missing: no {part}.")
            return None
        raw = read_bytes(path, at_most=FILE_LIMIT, error=RunFileError)
        self.found = True
        return raw

    def _lines(self, name: str, part: str) -> list[tuple[str, bytes]]:
        """Lines, and where they stand."""
        raw, path = self._bytes(name, part), self.directory / name
        split = enumerate((raw or b"").split(b"\n"), 1)
        lines = [(f"{path} line {number}", line) for number, line in split if line.strip()]
        if lines and not raw.endswith(b"\n"):
            # A run that was killed while writing leaves half a line, and that one only.
            where, line = lines[-1]
            try:
                _parse(line, where)
            except RunFileError:
                self.notes.append(
                    f"{where.removeprefix(f'{self.directory}/')} is cut off and left out."
                )
                lines.pop()
        return lines

    def _noted(self, name: str, rows: list[Row], part: str) -> list[Row]:
        if not rows and (self.directory / name).exists():
            self.notes.append(f"{name} is empty: no {part}.")
        return rows


def _finished(items: list[Row], results: list[Row], path: Path) -> tuple[list[Row], list[str]]:
    """Items of measurements that have all of them and a row, and a note on each of the others.

    Raises:
        RunFileError: items are not those that were measured.
    """
    by_measurement: dict[tuple[Any, ...], list[Row]] = {}
    for item in items:
        by_measurement.setdefault(measurement(item), []).append(item)
    rows = {measurement(row): row for row in results}
    kept, notes = [], []
    for key, own in by_measurement.items():
        row = rows.get(key)
        if row is None or row["n"] != len(own):
            method, rounds, split, seed = key
            has = "no row" if row is None else row["n"]
            notes.append(
                f"items.jsonl has {len(own)} items of {method} at {rounds} rounds on {split}, seed "
                f"{seed}, results.json {has}: an unfinished measurement, left out item by item."
            )
            continue
        if row.get(ITEMS_CRC32, found := items_checksum(own)) != found:
            raise RunFileError(
                f"{path}: the items of {describe(row)} are not those that were measured (their "
                "checksum is another)"
            )
        kept += own
    return kept, notes


def _parse(text: str | bytes, where: str) -> Any:
    if isinstance(text, bytes):
        text = decode_text(text, source=where, error=RunFileError)
    try:
        return parse_json(text, source=where, error=RunFileError)
    except RunFileError as error:
        raise RunFileError(str(error).replace("must be JSON:", "is not JSON:", 1)) from None


def _checked(
    where: str, row: Any, columns: Mapping[str, Kind], optional: Mapping[str, Kind] = NO_COLUMNS
) -> Row:
    """A row without its checksum."""
    _check_row(where, row, columns)
    _check_row(where, row, {c: kind for c, kind in optional.items() if row.get(c) is not None})
    return unseal(row, source=where, error=RunFileError)


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _check_row(where: str, row: Any, columns: Mapping[str, Kind], unit: str = "column") -> None:
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
            name = getattr(kind, "__name__", "text or a number")
            raise RunFileError(f"{where}: {unit} {column!r} is {shown(value)}, must be {name}")
        if kind is int and abs(value) > LARGEST_WHOLE:
            limit = f"{LARGEST_WHOLE:,}"
            raise RunFileError(
                f"{where}: {unit} {column!r} is {shown(value)}, must be at most {limit}"
            )
        if kind is float and column not in MAY_BE_INFINITE and not abs(value) < LARGEST:
            raise RunFileError(f"{where}: {unit} {column!r} is {shown(value)}, must be finite")


def _check_groups(path: Path, rows: list[Row]) -> None:
    for column in GROUPS:
        found = len({row[column] for row in rows if column in row})
        if found > MOST_GROUPS:
            raise RunFileError(
                f"{path}: column {column!r} must have at most {MOST_GROUPS} different values, has "
                f"{found:,}"
            )


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
