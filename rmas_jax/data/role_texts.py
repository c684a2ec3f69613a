"""Questions, answers and role texts from files, as a tfds data set.

Files are read and checked once: good rows are written to array_record files, in a folder named by a
digest of the files' contents and the selected fields; bad rows are listed beside them. A record of
the data set is an `Example`: for each role it has no text, one for all rounds or one per round, and
its further fields are one JSON object.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from rmas_jax.data import records
from rmas_jax.data.examples import Example
from rmas_jax.data.files import Files
from rmas_jax.data.reading import look_through, read_rows
from rmas_jax.data.rows import (
    BadRow,
    Columns,
    DataError,
    choose_columns,
    looked_for,
    to_example,
)
from rmas_jax.data.rules import AS_IS, Rule, find_rule
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.json_rows import FILE_LIMIT, json_line
from rmas_jax.host.reading import GIBIBYTE, open_regular, size

BAD_ROWS = "bad_rows.jsonl"
TEXT_LIMIT = 8 * GIBIBYTE  # of the rows of a split, in memory; LiveCodeBench has 4.5


@dataclasses.dataclass(frozen=True)
class Source:
    """Files, and the parts to read from them."""

    files: Mapping[str, Files]  # by split
    shares: Mapping[str, float]  # split taken from train -> its share of the rows
    roles: tuple[str, ...]  # in the order of their turns; the last one answers
    fields: Mapping[str, str]  # part of a row or role -> field, instead of `rows.FIELDS`
    rounds: int  # number of rounds that need role texts
    further: tuple[str, ...] = ()  # other fields to keep
    prompted: tuple[str, ...] = ()  # fields of prompts
    rule: str | None = None  # a name of `rules.RULES`
    seed: int = 0  # of the rule
    unread: Mapping[str, Files] = dataclasses.field(default_factory=dict)  # further splits

    def digest(self) -> str:
        """A digest of the files' contents and of all settings that shape the rows.

        It covers unread splits, so that it does not depend on which are read; files of those count
        as empty if they cannot be opened.
        """
        settings = {
            "version": str(RoleTexts.VERSION),
            "shares": dict(self.shares),
            "roles": self.roles,
            "fields": dict(self.fields),
            "rounds": self.rounds,
            "further": (*self.further, *self.prompted),
            "rule": [self.rule, self.seed],
            "files": {
                split: [
                    (name, _digest(path, is_read=split in self.files)) for name, path in files.named
                ]
                for split, files in sorted({**self.files, **self.unread}.items())
            },
        }
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _digest(path: Path, *, is_read: bool) -> str:
    try:
        with open_regular(path, at_most=FILE_LIMIT, error=DataError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, DataError):
        if is_read:
            raise
        return ""


class Read(NamedTuple):
    """An example and its place."""

    file: str
    line: int
    example: Example


def read_files(
    files: Files,
    *,
    roles: Sequence[str],
    fields: Mapping[str, str],
    rounds: int,
    further: Sequence[str] = (),
    prompted: Sequence[str] = (),
    rule: Rule = AS_IS,
    seed: int = 0,
) -> tuple[list[Read], list[BadRow], Columns]:
    """Reads the files of a split: good rows, bad rows, and the fields used.

    Raises:
      DataError: a file cannot be read, lacks a field or has no good row; there is too much text.
    """
    seen = look_through(files, looked_for(roles, fields, (*further, *prompted)) | {*rule.columns})
    columns = Columns(parts={}, texts={})  # placeholder: every row is bad and has its own reason
    if seen.objects or not seen.rows:
        rule.check(seen.fields, where=files.where)
        columns = choose_columns(
            {*seen.fields, *rule.makes, *rule.keeps},
            roles,
            fields,
            where=files.where,
            further=(*rule.keeps, *further),
            prompted=prompted,
            needed=("question", "answer") if rule.has_answer or roles else ("question",),
        )
    used = (*columns.parts.values(), *columns.texts.values(), *columns.further, *rule.columns)
    good, bad, left = [], [], TEXT_LIMIT
    for name, path in files.named:
        for line, content in read_rows(name, path, used):
            try:
                made = rule.made(content, seed)
                example = to_example(made, columns, place=f"{name}:{line}", rounds=rounds)
            except ValueError as error:
                bad.append(BadRow(name, line, str(error)))
                continue
            left -= _size(example)
            if left < 0:
                raise DataError(
                    f"{files.where}: its rows must hold at most {size(TEXT_LIMIT)} of text, got "
                    "more; leave rows out, or name fewer files (data.files)"
                )
            good.append(Read(name, line, example))
    if not good:
        file, line, reason = bad[0]
        raise DataError(
            f"{files.where}: at least one row must be usable, got {len(bad)} bad ones; the first: "
            f"{file}, line {line}: {reason}"
        )
    return good, bad, columns


def _size(example: Example) -> int:
    """Bytes of an example's texts in memory."""
    own = (example.id, example.question, example.answer, *example.fields.values())
    return sum(map(sys.getsizeof, itertools.chain(own, *example.texts.values())))


def read_source(source: Source) -> tuple[dict[str, list[Example]], list[BadRow]]:
    """Reads all files: the rows of every split, and the rows left out.

    Splits share no question: if several files have one, test splits keep it before validation, and
    validation before train.

    Raises:
      DataError: as in `read_files`; validation lacks texts that train has; a split is empty.
    """
    read = functools.partial(
        read_files,
        fields=source.fields,
        rounds=source.rounds,
        further=source.further,
        prompted=source.prompted,
        rule=AS_IS if source.rule is None else find_rule(source.rule),
        seed=source.seed,
    )
    train: list[Read] = []
    bad: list[BadRow] = []
    columns = Columns({}, {})
    if "train" in source.files:
        train, bad, columns = read(source.files["train"], roles=source.roles)
    own = ("train",) if "train" in source.files else ()
    splits: dict[str, list[Read]] = {split: [] for split in (*own, *source.shares)}
    for row in train:
        splits[split_of(row.example.question, source.shares)].append(row)
    for split, files in source.files.items():
        if split == "train":
            continue
        # Validation needs texts of the roles of train, test splits need none.
        needed = columns.texts if split == "validation" else {}
        splits[split], found, there = read(files, roles=[*needed])
        if lacking := needed.keys() - there.texts.keys():
            raise DataError(
                f"{files.where}: must have texts of {', '.join(sorted(lacking))}, as "
                f"{source.files['train'].where} has, got none"
            )
        bad += found
    bad += _repeated(splits)
    for split, reads in splits.items():
        if not reads:
            share = f"{source.shares[split]:g} of " if split in source.shares else ""
            where = (source.files.get(split) or source.files["train"]).where
            left_out = f"{len(bad)} others are bad, the first: {bad[0].reason}; " if bad else ""
            raise DataError(
                f"{where}: the split {split!r} must have a row, got none ({share}{len(train)} "
                f"rows); {left_out}give it its own file (data.files)"
            )
    return {split: [read.example for read in reads] for split, reads in splits.items()}, bad


def split_of(question: str, shares: Mapping[str, float]) -> str:
    """The split of a question, by a hash of its words; `train` has the remaining share."""
    digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _repeated(splits: dict[str, list[Read]]) -> Iterator[BadRow]:
    """Removes repeated rows, and yields them.

    Their id occurs earlier in their split, their question in a split of higher precedence, or their
    content (`_content`) in another file of their split.
    """
    split_of_question: dict[str, str] = {}  # question -> split
    trained = [split for split in ("validation", "train") if split in splits]
    for split in (*(split for split in splits if split not in trained), *trained):
        kept: list[Read] = []
        ids: set[str] = set()
        homes: dict[str | bytes, str] = {}  # question or content -> file
        for read in splits[split]:
            question, name = " ".join(read.example.question.split()), read.example.id
            content: str | bytes = _content(read.example) if split in trained else question
            if (other := split_of_question.setdefault(question, split)) != split:
                yield BadRow(read.file, read.line, f"the same question is in {other}")
            elif (home := homes.setdefault(content, read.file)) != read.file:
                same = "row" if split in trained else "question"
                yield BadRow(read.file, read.line, f"the same {same} is in {home}")
            elif name in ids:
                yield BadRow(read.file, read.line, f"id must be unique, got {name!r} again")
            else:
                ids.add(name)
                kept.append(read)
        splits[split] = kept


def _content(example: Example) -> bytes:
    """All of an example but its id, for comparison.

    Copies of a file, and configurations of a data set in adjacent folders (MMLU's `all`), would
    count rows twice. Within a file, repeated rows are kept: they are the author's choice.
    """
    content = dataclasses.asdict(dataclasses.replace(example, id=""))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


class RoleTexts(tfds.core.GeneratorBasedBuilder):
    """Questions, answers and role texts from files."""

    VERSION = tfds.core.Version("4.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Questions, answers and role texts.",
        "2.0.0": "No answers that are not a number, and whole ones without a point.",
        "3.0.0": "No row that another file of its split has too.",
        "4.0.0": "Role texts under `texts`, further fields under `fields`.",
    }

    def __init__(
        self,
        roles: Sequence[str],
        splits: Mapping[str, Sequence[Example]] | None = None,
        bad: Sequence[BadRow] = (),
        **options: Any,
    ):
        """Args:
        roles: roles that may have texts.
        splits: examples by split; None if already written.
        bad: rows left out; see `read_source`.
        options: of `GeneratorBasedBuilder`.
        """
        self.roles, self.splits, self.bad = tuple(roles), splits, bad
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "id": text,
            "question": text,
            "answer": text,
            "difficulty": np.int32,
            "texts": {role: tfds.features.Sequence(text) for role in self.roles},
            "fields": text,  # a JSON object: every field is optional
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=__doc__,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # files are here already
        splits = self.splits
        assert splits is not None  # only builders with examples write them
        lines = b"".join(json_line(row._asdict()) for row in self.bad)
        write_atomic(Path(self.data_dir) / BAD_ROWS, lines)
        return {
            split: ((example.id, self._to_record(example)) for example in examples)
            for split, examples in splits.items()
        }

    def _to_record(self, example: Example) -> dict[str, Any]:
        """An example as a record; roles without texts have an empty list."""
        texts = {role: example.texts.get(role, ()) for role in self.roles}
        return dataclasses.asdict(example) | {
            "texts": texts,
            "fields": json.dumps(dict(example.fields)),
        }

    def read(self, split: str, rounds: int) -> Sequence[Example]:
        """The examples of a split, or of a part of one; see `records.read_split`."""
        return records.read_split(self, split, lambda row: _to_example(row).in_rounds(rounds))

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("splits are generators already")

    def bad_rows(self) -> list[BadRow]:
        """Rows left out; the data set must be prepared."""
        lines = (Path(self.data_dir) / BAD_ROWS).read_bytes().split(b"\n")
        return [BadRow(**json.loads(line)) for line in lines if line]


def _to_example(record: Mapping[str, Any]) -> Example:
    """An example from its record."""
    texts = {role: tuple(texts) for role, texts in record["texts"].items() if texts}
    return Example(**dict(record) | {"texts": texts, "fields": json.loads(record["fields"])})
