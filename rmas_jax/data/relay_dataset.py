"""The relay task as a tfds data set (`array_record` files, no TensorFlow needed)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from rmas_jax.data import relay

TEXT_FIELDS = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}


class Relay(tfds.core.GeneratorBasedBuilder):
    """Gate relay: multi-step questions whose steps are known to different agents."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "9,216 phrases, up to nine gates, role texts for four rounds.",
        "1.1.0": "test_unseen_entities drawn afresh.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {
            field: tfds.features.Sequence(tfds.features.Text()) for field in TEXT_FIELDS.values()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "question": tfds.features.Text(),
                    **texts,  # what each role should write, a text per round
                    "answer": tfds.features.Text(),
                    "difficulty": np.int32,  # gates, 1 to 9
                }
            ),
            description=relay.__doc__,
            homepage="https://arxiv.org/abs/2604.25917",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {
            split: ((row["id"], row) for row in relay.examples(split))
            for split in relay.split_questions()
        }

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("splits are generators already")


def load_relay(data_dir: str | Path, split: str) -> list[dict[str, Any]]:
    """Rows of a split, or of a part of one such as `test[:500]`; written on first use.

    Raises:
      ValueError: no such split; the message lists those there are.
    """
    tfds.disable_progress_bar()  # generated in seconds; the bars would break up ours
    builder = Relay(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return [_decoded(row) for row in builder.as_data_source(split=split)]


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Bytes to text and arrays to lists."""

    def text(value):
        if isinstance(value, bytes):
            return value.decode()
        return value if np.isscalar(value) else [text(item) for item in value]

    return {name: text(value) for name, value in row.items()}
