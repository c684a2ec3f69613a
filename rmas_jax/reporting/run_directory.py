"""Reads and checks the files of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, NotRequired, TypedDict, get_args, get_origin, get_type_hints

from rmas_jax.config.benchmark import METRICS
from rmas_jax.evaluation.record import ITEMS_CRC32, items_checksum
from rmas_jax.evaluation.rows import ItemRow, Measurement, ResultRow, measurement, metric_of
from rmas_jax.host.checksums import unseal, unseal_yaml
from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.reading import GIBIBYTE, decode_text, parse_json, read_bytes
from rmas_jax.run_files import AuditFiles, RunFiles

Kind = type | UnionType


class MetricRow(TypedDict):
    """A line of `metrics.jsonl`: a point of a training curve."""

    loop: str
    series: str
    step: int
    loss: float
    accuracy: NotRequired[float]
    seed: NotRequired[int]


class GradientRow(TypedDict):
    """A row of `gradients.json`: the gradient norm at an edge in a round, for a channel."""

    link: str
    round: int
    channel: str
    norm: float


class Columns(NamedTuple):
    """Columns that a report reads, with their types; files may have more."""

    required: Mapping[str, Kind]
    optional: Mapping[str, Kind]  # may be null or missing

    @classmethod
    def of(cls, row_type: type) -> Columns:
        """The columns of a TypedDict; `float` also takes whole numbers."""
        kinds = get_type_hints(row_type)
        marked = get_type_hints(row_type, include_extras=True)
        optional = {name for name in kinds if get_origin(marked[name]) is NotRequired}
        return cls(
            {name: kinds[name] for name in kinds if name not in optional},
            {name: kinds[name] for name in kinds if name in optional},
        )


OF_ITEMS = Columns.of(ItemRow)
ITEM_COLUMNS = Columns(
    {
        name: OF_ITEMS.required[name]
        for name in (*Measurement._fields, "id", "correct", "difficulty")
    },
    {
        **{name: str for name in ("outcome", "question", "prediction", "gold", "text", "reason")},
        "prompt_hash": str,
        "scores": OF_ITEMS.optional["scores"],
    },
)
# Training may diverge and a gradient may overflow: the report shows it.
LARGEST = 1e300  # beyond it, sums are infinite
MAY_BE_INFINITE = {"loss", "norm"}
LARGEST_WHOLE = 2**53  # beyond it, figures lose digits
# Each value of these columns gets a figure or a line of a table.
GROUPS = ("method", "rounds", "benchmark", "split", "loop", "series", "link", "channel")
MOST_GROUPS = 100
FILE_LIMIT = 2 * GIBIBYTE
# File -> remedy, with the work that a new start repeats.
RUN_AGAIN = "put back a copy, or delete it and run the same command again: "
WAYS_OUT = {
    RunFiles.results: f"{RUN_AGAIN}everything is then measured again",
    RunFiles.items: "run the same command again: damaged items are then measured again",
    RunFiles.gradients: f"{RUN_AGAIN}the gradient norms are then measured again",
    RunFiles.timings: f"{RUN_AGAIN}the inner loop then runs again, and measurements are kept",
    RunFiles.metrics: "put back a copy, or delete it: the report is then written without curves",
    RunFiles.environment: "put back a copy, or delete it: the report is then written without it",
    RunFiles.config: "put back a copy, or delete it: the report is then written without it",
}


class RunFileError(InputError):
    """An unusable file of a run; the message names the file, the place and the column."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Contents of a run directory; a missing file is an empty field and a note."""

    directory: Path
    results: list[ResultRow]
    items: list[ItemRow]
    metrics: list[MetricRow]
    gradients: list[GradientRow]
    environment: dict[str, Any]
    config: str
    timings: dict[str, float]
    notes: list[str]  # on missing or skipped parts
    audits: list[Path] = dataclasses.field(default_factory=list)  # folders of finished ones


def read_run(directory: str | Path) -> Run:
    """Reads and checks a run directory, without writing.

    Skips damaged lines of `metrics.jsonl`, which only a new training would restore, with a note.

    Raises:
        RunFileError: the directory holds no file of a run, or one is damaged, lacks a column or is
            inconsistent; the message gives the remedy.
    """
    files = RunFiles(Path(directory))
    reader = _Reader(files.root)
    results = reader.rows(RunFiles.results, Columns.of(ResultRow), "claims, accuracy and cost")
    items = reader.lines(RunFiles.items, ITEM_COLUMNS, "paired comparisons and difficulty")
    with _way_out(RunFiles.results):
        _check_results(files.results, results)
    with _way_out(RunFiles.items):
        items, unfinished = _finished(items, results, files.items)
    reader.notes += unfinished
    run = Run(
        directory=reader.directory,
        results=results,
        items=items,
        metrics=reader.curves(RunFiles.metrics, Columns.of(MetricRow), "training curves"),
        gradients=reader.rows(RunFiles.gradients, Columns.of(GradientRow), "gradient norms"),
        environment=reader.mapping(RunFiles.environment, "the environment"),
        config=reader.yaml(RunFiles.config, "the configuration"),
        timings=reader.mapping(RunFiles.timings, "timings", kind=float),
        notes=reader.notes,
        audits=[files.audit] if AuditFiles(files.audit).markdown.is_file() else [],
    )
    if not reader.found:
        raise RunFileError(f"{directory}: must hold files of a run ({RunFiles.results}, ...)")
    return run


@contextlib.contextmanager
def _way_out(name: str) -> Iterator[None]:
    """Adds the remedy to an error."""
    try:
        yield
    except RunFileError as error:
        raise RunFileError(f"{error}; {WAYS_OUT[name]}") from None


class _Reader:
    """Reads files by kind and notes missing or empty ones."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.notes: list[str] = []
        self.found = False

    def rows(self, name: str, columns: Columns, part: str) -> list[Any]:
        with _way_out(name):
            rows = self._json(name, part, empty=[])
            path = self.directory / name
            if not isinstance(rows, list):
                raise RunFileError(f"{path}: must be a list of rows, got a JSON {_json_type(rows)}")
            checked = [
                _checked(f"{path} row {number}", row, columns) for number, row in enumerate(rows, 1)
            ]
            _check_groups(path, checked)
        return self._noted(name, checked, part)

    def lines(self, name: str, columns: Columns, part: str) -> list[Any]:
        with _way_out(name):
            rows = [
                _checked(where, _parse(line, where), columns)
                for where, line in self._lines(name, part)
            ]
            _check_groups(self.directory / name, rows)
        return self._noted(name, rows, part)

    def curves(self, name: str, columns: Columns, part: str) -> list[Any]:
        rows, damaged = [], []
        with _way_out(name):
            lines = self._lines(name, part)
        for where, line in lines:
            try:
                rows.append(_checked(where, _parse(line, where), columns))
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
                raise RunFileError(f"{path}: must be an object, got a JSON {_json_type(mapping)}")
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
        """Lines and their places."""
        raw, path = self._bytes(name, part), self.directory / name
        split = enumerate((raw or b"").split(b"\n"), 1)
        lines = [(f"{path} line {number}", line) for number, line in split if line.strip()]
        if raw and lines and not raw.endswith(b"\n"):
            # A run killed during a write leaves at most one partial line.
            where, line = lines[-1]
            try:
                _parse(line, where)
            except RunFileError:
                self.notes.append(
                    f"{where.removeprefix(f'{self.directory}/')} is cut off and left out."
                )
                lines.pop()
        return lines

    def _noted(self, name: str, rows: list[Any], part: str) -> list[Any]:
        if not rows and (self.directory / name).exists():
            self.notes.append(f"{name} is empty: no {part}.")
        return rows


def _finished(
    items: list[ItemRow], results: list[ResultRow], path: Path
) -> tuple[list[ItemRow], list[str]]:
    """Items of finished measurements, with all items and a row, and notes on the others.

    Raises:
        RunFileError: items differ from the measured ones.
    """
    by_measurement: dict[Measurement, list[ItemRow]] = {}
    for item in items:
        by_measurement.setdefault(measurement(item), []).append(item)
    rows = {measurement(row): row for row in results}
    kept, notes = [], []
    for key, own in by_measurement.items():
        row = rows.get(key)
        if row is None or row["n"] != len(own):
            has = "no row" if row is None else row["n"]
            notes.append(
                f"{path.name} has {len(own)} items of {key}, {RunFiles.results} {has}: an "
                "unfinished measurement, left out item by item."
            )
            continue
        if row.get(ITEMS_CRC32, found := items_checksum(own)) != found:
            raise RunFileError(f"{path}: the items of {key} are damaged (another checksum)")
        kept += own
    return kept, notes


def _parse(text: str | bytes, where: str) -> Any:
    if isinstance(text, bytes):
        text = decode_text(text, source=where, error=RunFileError)
    return parse_json(text, source=where, error=RunFileError)


def _checked(where: str, row: Any, columns: Columns) -> dict[str, Any]:
    """A row without its checksum."""
    _check_row(where, row, columns.required)
    present = {name: kind for name, kind in columns.optional.items() if row.get(name) is not None}
    _check_row(where, row, present)
    return unseal(row, source=where, error=RunFileError)


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _check_row(where: str, row: Any, columns: Mapping[str, Kind], unit: str = "column") -> None:
    if not isinstance(row, dict):
        raise RunFileError(f"{where}: must be an object, got a JSON {_json_type(row)}")
    missing = [column for column in columns if column not in row]
    if missing:
        names = ", ".join(map(repr, missing))
        raise RunFileError(f"{where}: must have column{'s' * (len(missing) > 1)} {names}")
    for column, kind in columns.items():
        value = row[column]
        if kind is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif kind is int:
            fits = isinstance(value, int) and not isinstance(value, bool)
        elif get_origin(kind) is dict:  # of numbers, by name
            fits = isinstance(value, dict)
            if fits:
                of_value = dict.fromkeys(value, get_args(kind)[1])
                _check_row(f"{where}: {unit} {column!r}", value, of_value, "entry")
        else:
            fits = isinstance(value, kind)
        if not fits:
            name = getattr(kind, "__name__", "text or a number")
            raise RunFileError(f"{where}: {unit} {column!r} must be {name}, got {shown(value)}")
        if kind is int and abs(value) > LARGEST_WHOLE:
            raise RunFileError(
                f"{where}: {unit} {column!r} must be at most {LARGEST_WHOLE:,}, got {shown(value)}"
            )
        if kind is float and column not in MAY_BE_INFINITE and not abs(value) < LARGEST:
            raise RunFileError(f"{where}: {unit} {column!r} must be finite, got {shown(value)}")


def _check_groups(path: Path, rows: list[Any]) -> None:
    for column in GROUPS:
        found = len({row[column] for row in rows if column in row})
        if found > MOST_GROUPS:
            raise RunFileError(
                f"{path}: column {column!r} must have at most {MOST_GROUPS} different values, got "
                f"{found:,}"
            )


def _check_results(path: Path, rows: list[ResultRow]) -> None:
    """Checks beyond column types: counts are consistent and measurements unique."""
    seen: dict[Measurement, int] = {}
    latent_steps: dict[Measurement, int] = {}  # of any seed
    for number, row in enumerate(rows, 1):
        where = f"{path} row {number}"
        n, correct, accuracy = row["n"], row["correct"], row["accuracy"]
        if n < 1 or not 0 <= correct <= n:
            raise RunFileError(f"{where}: column 'correct' must be from 0 to n={n}, got {correct}")
        if abs(accuracy - correct / n) > 1e-3:  # allows for rounding in the file
            raise RunFileError(
                f"{where}: column 'accuracy' must be {correct / n:.4f}, as {correct} of {n} are "
                f"correct, got {accuracy}"
            )
        metric = metric_of(row)
        share = row.get(metric) if metric in METRICS else None
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise RunFileError(
                f"{where}: column 'metric' must be one of {', '.join(METRICS)} and name a column "
                f"from 0 to 1, got {shown(metric)}"
            )
        key = measurement(row)
        first = seen.setdefault(key, number)
        if first != number:
            raise RunFileError(f"{where}: measurements must be distinct, got {key} of row {first}")
        pooled = key._replace(seed=0)
        if latent_steps.setdefault(pooled, row["latent_steps"]) != row["latent_steps"]:
            raise RunFileError(
                f"{where}: column 'latent_steps' must be {latent_steps[pooled]} for {key}, as for "
                f"other seeds, got {row['latent_steps']}"
            )
