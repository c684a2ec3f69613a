"""The embedded questions as a tfds data set (`array_record` files, no TensorFlow needed)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from rmas_jax.data import relay

TEXT_FIELDS = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}


class Relay(tfds.core.GeneratorBasedBuilder):
    """Gate relay: multi-step questions; each agent has learnt some of the steps."""

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
                    **texts,  # target texts of each role, one per round
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
