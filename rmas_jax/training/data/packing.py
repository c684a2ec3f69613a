"""Dialogues packed into rows, several in one, so that an agent reads hardly any padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from rmas_jax.training.data.batches import length_groups
from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.data.limits import rows_at_once


class PackedBatch(NamedTuple):
    """Rows of dialogues, each in one piece, one behind the other."""

    ids: np.ndarray  # [B, T] int32
    segments: np.ndarray  # [B, T] int32; number of the dialogue in its row, 0 on padding
    numbers: np.ndarray  # [B, T] int32; of the tokens of role texts, -1 on all others


def packed_batches(
    dialogues: Dialogues, *, width: int, heads: int, shards: int = 1, **limits: int
) -> Iterator[PackedBatch]:
    """Every dialogue once, in rows as long as the longest that is packed with it (best fit).

    Args:
      dialogues: what is packed; the tokens of its role texts are counted through.
      width: D of the agent that will read.
      heads: N of it.
      shards: divides B; the last batch of a length ends in empty rows.
      **limits: those of `rows_at_once`, for B rows of T tokens over all devices; a row for every
        shard is read in any case, even if that is more.
    """
    lengths = dialogues.valid.sum(axis=1)
    count = np.cumsum(dialogues.target, dtype=np.int32).reshape(dialogues.target.shape)
    numbers = np.where(dialogues.target, count - 1, -1)
    for group in packing_groups(lengths, width):
        longest = int(lengths[group].max())
        source = [
            {"ids": dialogues.ids[i, -lengths[i] :], "numbers": numbers[i, -lengths[i] :]}
            for i in group
        ]
        packed = grain.experimental.BestFitPackIterDataset(
            grain.MapDataset.source(source).to_iter_dataset(),
            length_struct={"ids": longest, "numbers": longest},
            padding_struct={"ids": 0, "numbers": -1},
            # Two rows next to each other would else have gone into one: so many are enough.
            num_packing_bins=2 * math.ceil(lengths[group].sum() / longest),
            shuffle_bins=False,
        )
        rows = [PackedBatch(row["ids"], row["ids_segment_ids"], row["numbers"]) for row in packed]
        limit = max(shards, rows_at_once(longest, heads, **limits) // shards * shards)
        batches = math.ceil(len(rows) / limit)
        size = shards * math.ceil(len(rows) / batches / shards)
        empty = PackedBatch(*(np.full(longest, value, np.int32) for value in (0, 0, -1)))
        rows += [empty] * (-len(rows) % size)
        for start in range(0, len(rows), size):
            yield PackedBatch(*map(np.stack, zip(*rows[start : start + size], strict=True)))


def packing_groups(lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """Numbers of the texts that are packed with each other, longest first.

    One long text should not make long rows of all: attention to a row of T tokens by an agent of
    width D takes about T^2 / 6 D of what its matrices take. So short ones of `length_groups` are
    joined as far as that is worth the padding that it saves.
    """
    groups = length_groups(lengths, 1)

    def cost(apart: int) -> int:
        """Of the first groups apart, where hardly two texts fit a row, and the others together."""
        together = lengths[np.concatenate(groups[apart:])]
        rows = [(len(group), lengths[group].max()) for group in groups[:apart]]
        rows.append((math.ceil(together.sum() / together.max()), together.max()))
        return sum(int(n * longest * (6 * width + longest)) for n, longest in rows)

    apart = min(range(len(groups)), key=cost)
    return [*groups[:apart], np.concatenate(groups[apart:])]
