"""Finds the files of a data set: a path, a copy below $RMAS_DATA, or the Hugging Face hub."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from rmas_jax.config import DataConfig
from rmas_jax.data.files import (
    SUFFIXES,
    Files,
    files_of_one_split,
    listed_files,
    matching_files,
    regular,
)
from rmas_jax.data.published import PUBLISHED, repository_of
from rmas_jax.data.rows import DataError
from rmas_jax.host.errors import clipped, shown
from rmas_jax.host.inputs import local_input
from rmas_jax.host.storage import StorageError

LOCAL = "RMAS_DATA"  # environment variable: the folder of local copies, each called as its data set
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SPLIT_NAME = re.compile(r"(?!all$)[\w-]{1,60}")  # as in tfds


def find_files(
    config: DataConfig, splits: Collection[str] | None
) -> tuple[dict[str, Files], dict[str, Files]]:
    """Split -> its files: of the splits to read, and of the others.

    All are read where `splits` is None, or has one without files, which may be a part of another.

    Raises:
      DataError: they cannot be found; says where they may be put, or how the hub gives them.
    """
    for field, named in (("files", config.files), ("patterns", config.patterns)):
        if wrong := [name for name in named or {} if not SPLIT_NAME.fullmatch(name)]:
            raise DataError(
                f"data.{field}: the name of a split must be at most 60 letters, digits, - and _, "
                f"except all, got {shown(wrong[0])}"
            )
    finders: dict[str, Callable[[], Files]]
    if config.files is not None:
        finders = {
            split: functools.partial(_of_one_split, path) for split, path in config.files.items()
        }
    else:
        folder = _local(config) or _of_hub(config)
        if config.patterns:
            finders = {
                split: functools.partial(matching_files, folder, split, pattern)
                for split, pattern in config.patterns.items()
            }
        else:
            found = listed_files(folder).items()
            finders = {split: functools.partial(regular, files) for split, files in found}
    wanted = finders.keys() if splits is None or {*splits} - finders.keys() else splits
    return (
        {split: find() for split, find in finders.items() if split in wanted},
        {split: _or_none(find) for split, find in finders.items() if split not in wanted},
    )


def _of_one_split(path: str) -> Files:
    return files_of_one_split(local_input(path))


def _or_none(find: Callable[[], Files]) -> Files:
    """The files of an unread split; none if they are not there, which is no fault."""
    try:
        return find()
    except (OSError, DataError, StorageError):
        return Files("unread", ())


def _local(config: DataConfig) -> Path | None:
    """The path of a data set on this machine: where its name leads, or a copy below $RMAS_DATA.

    Of a URL, it is a copy, too.

    Raises:
      DataError: it is no copy of a data set of the hub, and so has no revision.
    """
    path, below = local_input(config.dataset), os.environ.get(LOCAL)
    copy = Path(below) / path if below and not path.is_absolute() else None
    if os.path.lexists(path) and config.revision is None:
        return path
    if copy is not None and os.path.lexists(copy):
        return copy
    if os.path.lexists(path):
        raise DataError(
            f"data.revision must be null for a local file or folder, got {shown(config.revision)} "
            f"for {shown(config.dataset, 300)}"
        )
    return None


def _of_hub(config: DataConfig) -> Path:
    """A snapshot of a data set of the hub, downloaded once."""
    dataset, patterns = config.dataset, list((config.patterns or {}).values())
    repository = repository_of(dataset) or (dataset if HUB_ID.fullmatch(dataset) else None)
    names = f"put {' and '.join(patterns) or 'its files'} into ${LOCAL}/{dataset}"
    here = f"{LOCAL} is {shown(os.environ[LOCAL], 300) if LOCAL in os.environ else 'not set'}"
    if repository is None:
        raise DataError(
            "data.dataset must be relay, files, reasoning-gym, split-evidence, the path of a file "
            f"or folder, a hub id, a published one ({', '.join(PUBLISHED)}), or a folder's name "
            f"below ${LOCAL}, got {shown(dataset, 300)} ({here})"
        )
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository,
            repo_type="dataset",
            revision=config.revision,
            allow_patterns=patterns or [f"*{suffix}" for suffix in SUFFIXES],
        )
    except Exception as error:  # the hub has many errors, and they share no base
        raise DataError(
            f"data.dataset={dataset!r}: neither a folder nor available from the hub: "
            f"{_reason(error, repository, config.revision)}; or {names} ({here})"
        ) from error
    return Path(snapshot)


def _reason(error: Exception, repository: str, revision: str | None) -> str:
    """An error of the hub, with what to do about it."""
    page = f"https://huggingface.co/datasets/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated: accept its conditions at {page}, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {page}, or a private one: correct the id, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} has no revision {shown(revision)}: correct data.revision"
    if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
        return f"the hub cannot be reached, and {page} was not downloaded before"
    return clipped(" ".join(str(error).split()), 300)
