"""Finds, checks and prepares the data of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmas_jax.config import DataConfig
from rmas_jax.config.data import EVIDENCE, GENERATED
from rmas_jax.data import evidence, reasoning, records
from rmas_jax.data.examples import Example
from rmas_jax.data.files import Files
from rmas_jax.data.relay import TEXT_ROUNDS
from rmas_jax.data.relay_dataset import TEXT_FIELDS, Relay
from rmas_jax.data.role_texts import RoleTexts, Source, read_source
from rmas_jax.data.rows import PARTS, BadRow, DataError, choose_columns, to_example
from rmas_jax.data.rules import find_rule
from rmas_jax.data.sources import find_files


class Dataset(NamedTuple):
    """A data set, prepared on disk."""

    # Of a split, or a part such as test[:500]; each is read from the disk when it is used.
    read: Callable[[str], Sequence[Example]]
    text_roles: tuple[str, ...]  # roles with texts in every training example, one per round
    version: str  # identifies the data
    sizes: Mapping[str, int]  # split -> number of its examples
    bad_rows: Sequence[BadRow] = ()  # rows left out
    unread: Sequence[str] = ()  # splits that were not asked for

    def load(self, split: str) -> list[Example]:
        """The same in memory."""
        return list(self.read(split))


def load_dataset(
    config: DataConfig,
    *,
    roles: Sequence[str],
    rounds: int,
    data_dir: Path,
    splits: Collection[str] | None = None,
    prompted: Sequence[str] = (),
) -> Dataset:
    """Finds, checks and prepares the data of a run.

    Args:
      config: of the data.
      roles: in the order of their turns; the last one answers. It always has texts, the answer as
        a fallback. Empty without training: the split train is then optional.
      rounds: number of rounds that need role texts.
      data_dir: folder of prepared data.
      splits: of files, to read and check; None, or one without files of its own: all.
      prompted: columns of prompts, which examples keep in rows that have them.

    Raises:
      DataError: the data is missing or unusable.
    """
    if unknown := [name for name in config.columns or {} if name not in (*PARTS, *roles)]:
        raise DataError(
            f"data.columns must be among {', '.join((*PARTS, *roles))}, got {', '.join(unknown)}"
        )
    if (gold := (config.columns or {}).get("answer")) in prompted:
        raise DataError(f"prompts must not have the column of gold answers, got {{{gold}}}")
    if config.dataset == "relay":
        return _relay(config, roles, rounds, data_dir, prompted)
    if config.dataset == GENERATED:
        if roles and "train" not in (config.splits or {}):
            raise DataError(
                f"data.splits must have train for training with data.dataset: {GENERATED}, got "
                f"{', '.join(config.splits or {}) or 'none'}"
            )
        version = reasoning.digest(config, roles)
        read = functools.partial(reasoning.read, config, roles)
        return _role_texts(version, read, roles, rounds, data_dir)
    if config.dataset == EVIDENCE:
        version = evidence.digest(config, roles, rounds)
        read = functools.partial(evidence.read, config, roles, rounds)
        return _role_texts(version, read, roles, rounds, data_dir)
    if config.rule is not None:
        find_rule(config.rule)
    files, unread = find_files(config, splits)
    if roles and "train" not in files:
        raise DataError(
            f"{config.dataset}: its splits must include train, got {', '.join(files)} by the names "
            "of its files; name the file or folder of each split (data.files)"
        )
    source = Source(
        files=files,
        unread=unread,
        shares=_shares(config, files),
        roles=tuple(roles),
        fields=config.columns or {},
        rounds=rounds,
        further=config.fields,
        prompted=tuple(prompted),
        rule=config.rule,
        seed=config.seed,
    )
    read = functools.partial(read_source, source)
    folder = data_dir / "+".join(files) if unread else data_dir
    dataset = _role_texts(source.digest(), read, roles, rounds, folder)
    return dataset._replace(unread=(*unread,))


def _role_texts(
    version: str,
    read: Callable[[], tuple[Mapping[str, Sequence[Example]], Sequence[BadRow]]],
    roles: Sequence[str],
    rounds: int,
    data_dir: Path,
) -> Dataset:
    """The data set of a version, prepared from the splits and bad rows of `read`."""
    options: dict[str, Any] = {"data_dir": str(data_dir / version), "file_format": "array_record"}
    folder = records.folder_of(RoleTexts, data_dir / version)
    records.prepare(folder, lambda: RoleTexts(roles, *read(), **options))
    builder = RoleTexts(roles, **options)

    def examples(split: str) -> Sequence[Example]:
        return builder.read(split, rounds)

    # All training examples have texts of the same roles.
    first = examples("train[:1]")[0] if roles else Example("", "", "")
    texts = tuple(role for role in roles if role in first.texts)
    return Dataset(examples, texts, version, records.sizes(builder), builder.bad_rows())


def _relay(
    config: DataConfig,
    roles: Sequence[str],
    rounds: int,
    data_dir: Path,
    prompted: Sequence[str],
) -> Dataset:
    """The embedded data set, with texts for `TEXT_ROUNDS` rounds.

    `columns` may give an unknown role the texts of a known one.
    """
    if rounds > TEXT_ROUNDS:
        raise DataError(
            f"rounds must be at most {TEXT_ROUNDS} with data.dataset=relay, got {rounds}"
        )
    present = (*PARTS, *TEXT_FIELDS.values())
    columns = choose_columns(
        present,
        roles,
        config.columns or {},
        where="data.dataset=relay",
        further=config.fields,
        prompted=prompted,
    )

    def make() -> Relay:
        return Relay(data_dir=str(data_dir), file_format="array_record")

    records.prepare(records.folder_of(Relay, data_dir), make)
    builder = make()

    def example(row: dict[str, Any]) -> Example:
        return to_example(row, columns, place=row["id"], rounds=rounds).in_rounds(rounds)

    def examples(split: str) -> Sequence[Example]:
        return records.read_split(builder, split, example)

    return Dataset(examples, tuple(columns.texts), str(Relay.VERSION), records.sizes(builder))


def _shares(config: DataConfig, files: Mapping[str, Files]) -> dict[str, float]:
    """Splits taken from the training files -> their shares."""
    if "train" not in files:
        return {}
    shares = {"test": config.test_share, "validation": config.validation_share}
    return {split: share for split, share in shares.items() if share and split not in files}
