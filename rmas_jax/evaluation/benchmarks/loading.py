"""Loads the data of a benchmark, and holds them against its definition."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from rmas_jax.config import BenchmarkConfig
from rmas_jax.config.data import EVIDENCE
from rmas_jax.data import DataError, Example, evidence
from rmas_jax.data.loading import Dataset, load_dataset
from rmas_jax.data.rules import find_rule

log = logging.getLogger(__name__)


def load_benchmark(
    benchmark: BenchmarkConfig, data_dir: Path, prompted: Sequence[str] = ()
) -> Dataset:
    """The data of a benchmark's splits, of which the others are neither read nor checked.

    Warns of rows left out. `prompted` are the columns of prompts, see `load_dataset`.

    Raises:
      DataError: they cannot be had, and how they can; see also `check_data`.
    """
    splits = {split.partition("[")[0] for split in benchmark.splits}
    try:
        data = load_dataset(
            benchmark.data,
            roles=(),
            rounds=1,
            data_dir=data_dir,
            splits=splits,
            prompted=prompted,
        )
    except DataError as error:
        access = f" (access: {benchmark.access})" if benchmark.access else ""
        raise DataError(f"{benchmark.name}: {error}{access}") from error
    if data.bad_rows:
        log.warning("%s: %s", benchmark.name, _bad_rows(data))
    check_data(benchmark, data, prompted)
    return data


def check_data(benchmark: BenchmarkConfig, data: Dataset, prompted: Collection[str] = ()) -> None:
    """Holds data against the numbers of items and the checksums of a benchmark.

    Names the checksum of a split whose definition has a number of items, but no checksum.

    Raises:
      DataError: a split has another number or checksum; how to measure on it nevertheless.
    """
    items, checksums = benchmark.items or {}, benchmark.checksum or {}
    # Columns that prompts alone need are no part of the benchmark.
    kept = find_rule(benchmark.data.rule).keeps if benchmark.data.rule else ()
    if benchmark.data.dataset == EVIDENCE:
        kept = evidence.COLUMNS
    own = {*prompted} - {*benchmark.data.fields, *kept}
    present = (*data.sizes, *data.unread)
    for name, chosen in (("items", items), ("checksum", checksums)):
        if unknown := [split for split in chosen if split not in present]:
            raise DataError(
                f"{benchmark.name}: {name} must be of the splits {', '.join(present)}, got "
                f"{unknown[0]}"
            )
    for split, count in items.items():
        found = data.sizes.get(split, 0)
        if split not in data.unread and found != count:
            raise DataError(
                f"{benchmark.name}: {split} must have {count} items, got {found}; "
                f"{_bad_rows(data) or 'its files may be cut off or of another version'}: fetch "
                "them again (a file of your own with another number in `items`, and another name, "
                "measures on these)"
            )
    for split in {**items, **checksums}:
        if split in data.unread:
            continue
        wanted, digest = checksums.get(split), checksum_of(data.load(split), without=own)
        pinned = f"checksum: {{{split}: '{digest}'}} in its entry of evaluation.benchmarks"
        if wanted is None:
            log.info(
                "%s: %s has no checksum to compare with; later runs require these data with %s",
                *(benchmark.name, split, pinned),
            )
        elif digest != wanted:
            raise DataError(
                f"{benchmark.name}: the checksum of {split} must be {wanted}, got {digest}: other "
                "ids, questions, gold answers or tests than expected; fetch its files "
                f"again, or measure on these with {pinned}"
            )


def _bad_rows(data: Dataset) -> str:
    """The rows left out, in words; "": none."""
    if not data.bad_rows:
        return ""
    first = data.bad_rows[0]
    return (
        f"{len(data.bad_rows)} bad rows left out, the first: {first.file}, line {first.line}: "
        f"{first.reason}"
    )


def checksum_of(examples: Sequence[Example], *, without: Collection[str] = ()) -> str:
    """A digest of ids, questions, gold answers and further fields, such as tests, by ids.

    `without` are fields that do not count.

    Independent of the texts of roles, which are there for training.
    """
    digest = hashlib.sha256()
    for example in sorted(examples, key=lambda example: example.id):
        fields = sorted(item for item in example.fields.items() if item[0] not in without)
        row = (example.id, example.question, example.answer, fields)
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]
