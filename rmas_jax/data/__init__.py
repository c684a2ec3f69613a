"""Task data: generated worlds, tfds data sets, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rmas_jax.data import relay_dataset


class Task(NamedTuple):
    """A data set whose rows have id, question, answer, difficulty and the roles' texts."""

    load: Callable[[str | Path, str], list[dict[str, Any]]]  # folder, split -> rows
    text_fields: Mapping[str, str]  # role -> field with its texts, one per round


TASKS = {"relay": Task(relay_dataset.load_relay, relay_dataset.TEXT_FIELDS)}
