"""Finds the files of a data set: a path, a copy below $RMAS_DATA, or the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from rmas_jax.config import DataConfig
from rmas_jax.data.files import SUFFIXES, Files, data_files, files_of_one_split, matching_files
from rmas_jax.data.published import PUBLISHED, repository_of
from rmas_jax.data.rows import DataError
from rmas_jax.host.errors import clipped, shown

LOCAL = "RMAS_DATA"  # environment variable: the folder of local copies, each called as its data set
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SPLIT_NAME = re.compile(r"(?!all$)[\w-]{1,60}")  # as in tfds


def find_files(config: DataConfig) -> dict[str, Files]:
    """Split -> its files.

    Raises:
      DataError: they cannot be found; says where they may be put, or how the hub gives them.
    """
    for field, splits in (("files", config.files), ("patterns", config.patterns)):
        if wrong := [name for name in splits or {} if not SPLIT_NAME.fullmatch(name)]:
            raise DataError(
                f"data.{field}: the name of a split must be at most 60 letters, digits, - and _, "
                f"except all, got {shown(wrong[0])}"
            )
    if config.files is not None:
        return {split: files_of_one_split(Path(path)) for split, path in config.files.items()}
    folder = _local(config.dataset) or _of_hub(config)
    return matching_files(folder, config.patterns) if config.patterns else data_files(folder)


def _local(dataset: str) -> Path | None:
    """The path of a data set on this machine."""
    below = os.environ.get(LOCAL)
    paths = [Path(dataset), *([Path(below) / dataset] if below else [])]
    return next((path for path in paths if os.path.lexists(path)), None)


def _of_hub(config: DataConfig) -> Path:
    """A snapshot of a data set of the hub, downloaded once."""
    dataset, patterns = config.dataset, list((config.patterns or {}).values())
    repository = repository_of(dataset) or (dataset if HUB_ID.fullmatch(dataset) else None)
    names = f"put {' and '.join(patterns) or 'its files'} into ${LOCAL}/{dataset}"
    here = f"{LOCAL} is {shown(os.environ[LOCAL], 300) if LOCAL in os.environ else 'not set'}"
    if repository is None:
        raise DataError(
            "data.dataset must be relay, files, reasoning-gym, the path of a file or folder, a "
            f"hub id, a published one ({', '.join(PUBLISHED)}), or a folder's name below ${LOCAL}, "
            f"got {shown(dataset, 300)} ({here})"
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
