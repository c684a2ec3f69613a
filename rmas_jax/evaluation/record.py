"""The measurements of an evaluation on disk: `items.jsonl` and `results.json`.

A row of `results.json` holds its checksum and that of its items. After damage to items, only their
measurement runs again; a damaged `results.json`, which no interruption can cause, is an error.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_type_hints

from rmas_jax.evaluation.rows import ItemRow, Measurement, ResultRow, measurement
from rmas_jax.evaluation.under_way import UnderWay, open_under_way
from rmas_jax.host.atomic import append, write_atomic
from rmas_jax.host.checksums import checksum, seal, unseal
from rmas_jax.host.errors import InputError, listed, shown
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.host.reading import GIBIBYTE, decode_text, parse_json, read_bytes, read_text
from rmas_jax.run_files import RunFiles

KEY = get_type_hints(Measurement)
ITEMS_CRC32: Final = "items_crc32"
FILE_LIMIT = 2 * GIBIBYTE
log = logging.getLogger(__name__)


class RecordError(InputError):
    """An unusable file of the record; the message names it and the remedy."""


class _Found(NamedTuple):
    """Content of both files."""

    rows: list[ResultRow]  # of finished measurements
    items: list[ItemRow]  # of these rows
    is_whole: bool  # the files hold nothing else
    damage: list[str]  # losses beyond those of an interruption


@dataclasses.dataclass
class Record:
    """The two files of an evaluation that can stop anywhere and resume.

    A measurement is done once `results.json` holds its row and `items.jsonl` all its items,
    undamaged; until then its rollouts are in a file of their own (`under_way`). The first process
    reads and writes; all processes have the same rows.
    """

    items_path: Path
    results_path: Path
    under_way_path: Path
    rows: list[ResultRow]  # of finished measurements

    def has(self, key: Measurement) -> bool:
        """Whether a measurement is done."""
        return any(measurement(row) == key for row in self.rows)

    def begin(self, key: Measurement, identity: Mapping[str, str]) -> UnderWay:
        """Starts or resumes a measurement of a benchmark of this identity."""
        return open_under_way(self.under_way_path, key, identity)

    def finish(self, row: ResultRow, items: Sequence[ItemRow]) -> None:
        """Adds a measurement: its items in order, then its row."""
        row = {**row, ITEMS_CRC32: items_checksum(items)}

        def add() -> list[ResultRow]:
            rows = [*self.rows, row]
            append(self.items_path, "".join(map(_line, items)))
            write_atomic(self.results_path, _table(rows))
            self.under_way_path.unlink(missing_ok=True)
            return rows

        self.rows = broadcast_from_first(add)


def open_record(directory: Path) -> Record:
    """Opens the files of a directory, or creates them.

    Drops items without a row, and damaged measurements with a warning.

    Raises:
      RecordError: `results.json` is damaged.
    """
    items_path, results_path = _paths(directory)

    def repair() -> list[ResultRow]:
        directory.mkdir(parents=True, exist_ok=True)
        found = _read(results_path, items_path)
        for damage in listed(found.damage):
            log.warning("%s", damage)
        if not found.is_whole:
            write_atomic(items_path, "".join(map(_line, found.items)))
            write_atomic(results_path, _table(found.rows))
        return found.rows

    under_way_path = RunFiles(directory).under_way
    return Record(items_path, results_path, under_way_path, broadcast_from_first(repair))


def lost(directory: Path, expected: Iterable[Measurement] = ()) -> str | None:
    """The damaged or missing part of a finished evaluation; None: nothing.

    Args:
      directory: of the two files.
      expected: the measurements of the evaluation.

    Raises:
      RecordError: `results.json` is damaged.
    """
    items, results = _paths(directory)
    for path in (results, items):
        if not path.exists():
            return f"{path}: no such file; its measurements run again"
    found = _read(results, items)
    done = set(map(measurement, found.rows))
    missing = (
        f"{results}: has no row of {key}, which is measured again"
        for key in expected
        if key not in done
    )
    return next(itertools.chain(found.damage, missing), None)


def items_checksum(items: Sequence[ItemRow]) -> str:
    """A checksum of a measurement's items, in order."""
    return checksum([checksum(item) for item in items])


def _paths(directory: Path) -> tuple[Path, Path]:
    files = RunFiles(directory)
    return files.items, files.results


def _read(results: Path, items: Path) -> _Found:
    rows = _rows(results) if results.exists() else []
    lines = list(_lines(items)) if items.exists() else []
    damage = [text for _, text in lines if text]
    by_measurement: dict[Measurement, list[ItemRow]] = {}
    for item, _ in lines:
        if item is not None:
            by_measurement.setdefault(measurement(item), []).append(item)
    done = []
    for row in rows:
        own = by_measurement.get(measurement(row), [])
        if len(own) != row["n"]:
            reason = f"{len(own)} items of {row['n']}"
        elif row.get(ITEMS_CRC32, own_checksum := items_checksum(own)) != own_checksum:
            reason = "items of another checksum"
        else:
            done.append(row)
            continue
        damage.append(f"{items}: has {reason} for {measurement(row)}, which is measured again")
    kept = [item for row in done for item in by_measurement[measurement(row)]]
    is_whole = results.exists() and items.exists() and len(done) == len(rows)
    is_whole = is_whole and len(kept) == len(lines)
    return _Found(done, kept, is_whole, damage)


def _rows(path: Path) -> list[ResultRow]:
    try:
        rows = parse_json(
            read_text(path, at_most=FILE_LIMIT, error=RecordError), source=path, error=RecordError
        )
        if not isinstance(rows, list):
            raise RecordError(f"{path}: must hold a list of rows, got {shown(rows)}")
        checked = [
            cast(ResultRow, _checked(row, KEY | {"n": int}, f"{path} row {number}"))
            for number, row in enumerate(rows, 1)
        ]
        counts = collections.Counter(map(measurement, checked))
        for row in checked:
            if counts[measurement(row)] > 1:
                raise RecordError(f"{path}: rows must be distinct, got two of {measurement(row)}")
        return checked
    except RecordError as error:
        raise RecordError(
            f"{error}; put back a copy, or delete it and run again: everything is then measured "
            "again"
        ) from None


def _lines(path: Path) -> Iterator[tuple[ItemRow | None, str]]:
    """Items of a file; for a bad line, None and the fault.

    Text after the last line break is an interrupted write.
    """
    try:
        raw = read_bytes(path, at_most=FILE_LIMIT, error=RecordError)
    except RecordError as error:
        raise RecordError(
            f"{error}; put back a copy, or delete it and run again: everything is then measured "
            "again"
        ) from None
    whole, _, rest = raw.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        source = f"{path} line {number}"
        try:
            text = decode_text(line, source=source, error=RecordError)
            item = parse_json(text, source=source, error=RecordError)
            yield cast(ItemRow, _checked(item, KEY, source)), ""
        except RecordError as error:
            yield None, str(error)
    if rest:
        yield None, ""


def _checked(row: Any, columns: Mapping[str, type], source: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RecordError(f"{source}: must be an object, got {shown(row)}")
    for column, kind in columns.items():
        if not isinstance(row.get(column), kind) or isinstance(row[column], bool):
            raise RecordError(
                f"{source}: {column} must be of type {kind.__name__}, got {shown(row.get(column))}"
            )
    return unseal(row, source=source, error=RecordError)


def _table(rows: Sequence[ResultRow]) -> str:
    return json.dumps([seal(row) for row in rows], indent=1) + "\n"


def _line(item: ItemRow) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"
