"""Loads the data of a benchmark, and holds them against its definition."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.config import BenchmarkConfig
from rmas_jax.data import DataError, Dataset, Example, load_dataset

log = logging.getLogger(__name__)


def load_benchmark(benchmark: BenchmarkConfig, data_dir: Path) -> Dataset:
    """The data of a benchmark's splits, of which the others are neither read nor checked.

    Warns of rows left out, and of questions or gold answers that are not the defined.

    Raises:
      DataError: they cannot be had, and how they can; or there are fewer than `benchmark.items`.
    """
    splits = {split.partition("[")[0] for split in benchmark.splits}
    try:
        data = load_dataset(benchmark.data, roles=(), rounds=1, data_dir=data_dir, splits=splits)
    except DataError as error:
        access = f" (access: {benchmark.access})" if benchmark.access else ""
        raise DataError(f"{benchmark.name}: {error}{access}") from error
    bad = ""
    if data.bad_rows:
        bad = "{0} bad rows left out, the first: {1.file}, line {1.line}: {1.reason}".format(
            len(data.bad_rows), data.bad_rows[0]
        )
        log.warning("%s: %s", benchmark.name, bad)
    present = (*data.sizes, *data.unread)
    for name in ("items", "checksum"):
        if unknown := [s for s in getattr(benchmark, name) or {} if s not in present]:
            raise DataError(
                f"{benchmark.name}: {name} must be of the splits {', '.join(present)}, got "
                f"{unknown[0]}"
            )
    for split, count in (benchmark.items or {}).items():
        if split in data.unread:
            continue
        found = data.sizes.get(split, 0)
        if found < count:
            raise DataError(
                f"{benchmark.name}: {split} must have {count} items, got {found}; "
                f"{bad or 'its files may be cut off: fetch them again'} (a file of your own with "
                "another number in `items`, and another name, measures on a part)"
            )
        if found > count:
            log.warning("%s: %s must have %d items, got %d", benchmark.name, split, count, found)
    for split, wanted in (benchmark.checksum or {}).items():
        if split in data.unread:
            continue
        if (checksum := checksum_of(data.load(split))) != wanted:
            log.warning(
                "%s: %s has other questions or gold answers than its definition: checksum must "
                "be %s, got %s",
                *(benchmark.name, split, wanted, checksum),
            )
    return data


def checksum_of(examples: Sequence[Example]) -> str:
    """A digest of ids, questions, gold answers and further fields, such as tests, by ids.

    Independent of the texts of roles, which are there for training.
    """
    digest = hashlib.sha256()
    for example in sorted(examples, key=lambda example: example.id):
        fields = sorted(example.fields.items())
        row = (example.id, example.question, example.answer, fields)
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]
