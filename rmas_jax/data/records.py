"""Rows of tfds data sets, which are written as array_record files on first use."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def prepare(builder: tfds.core.GeneratorBasedBuilder) -> None:
    """Writes the files of a data set, unless they are there."""
    tfds.disable_progress_bar()  # generated in seconds; the bars would break up ours
    builder.download_and_prepare()


def read_split(builder: tfds.core.GeneratorBasedBuilder, split: str) -> list[dict[str, Any]]:
    """Rows of a split, or of a part of one such as `test[:500]`.

    Raises:
      ValueError: no such split; the message lists those there are.
    """
    return [_decoded(row) for row in builder.as_data_source(split=split)]


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Bytes to text, and arrays to lists and numbers."""

    def plain(value):
        if isinstance(value, bytes):
            return value.decode()
        if np.isscalar(value):
            return value
        return [plain(item) for item in value]

    return {name: plain(value) for name, value in row.items()}
