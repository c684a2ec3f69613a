"""Dialogues packed into rows, several in one, with little padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from rmas_jax.prompts import TokenRows, tiled_width
from rmas_jax.training.data.batches import length_groups
from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.data.limits import rows_at_once


class PackedBatch(NamedTuple):
    """Rows of consecutive, contiguous dialogues."""

    ids: np.ndarray  # [B, T] int32
    segments: np.ndarray  # [B, T] int32; number of the dialogue in its row, 0 on padding
    numbers: np.ndarray  # [B, T] int32; of the tokens of role texts, -1 on all others


def packed_batches(
    dialogues: Dialogues, *, width: int, heads: int, shards: int = 1, **limits: int
) -> Iterator[PackedBatch]:
    """Every dialogue once, in rows of the tiled width of the longest of its group (best fit).

    Args:
      dialogues: numbers of tokens run over all their role texts.
      width: D of the agent.
      heads: N of the agent.
      shards: divides B; the last batch of a length ends in empty rows.
      **limits: those of `rows_at_once`, for B rows of T tokens over all devices; every shard gets
        at least one row, even beyond the limits.
    """
    tokens, in_text = dialogues.tokens, dialogues.in_text
    lengths = tokens.lengths
    numbers = np.where(in_text, np.cumsum(in_text, dtype=np.int32) - 1, -1)
    numbers = TokenRows(numbers, tokens.starts)
    for group in packing_groups(lengths, width):
        longest = tiled_width(int(lengths[group].max()))
        source = [{"ids": tokens[i], "numbers": numbers[i]} for i in group]
        packed = grain.experimental.BestFitPackIterDataset(
            grain.MapDataset.source(source).to_iter_dataset(),
            length_struct={"ids": longest, "numbers": longest},
            padding_struct={"ids": 0, "numbers": -1},
            # Two adjacent rows never fit into one, so this number is enough.
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
    """Indices of texts to pack together, longest first.

    One long text should not lengthen all rows: attention to a row of T tokens by an agent of width
    D costs about T^2 / 6 D of its matrices' cost. Short groups of `length_groups` are therefore
    joined only as far as the saved padding outweighs this cost.
    """
    groups = length_groups(lengths, 1)

    def cost(apart: int) -> int:
        """Cost of the first groups apart (rarely two texts fit a row) and the others joined."""
        together = lengths[np.concatenate(groups[apart:])]
        rows = [(len(group), lengths[group].max()) for group in groups[:apart]]
        rows.append((math.ceil(together.sum() / together.max()), together.max()))
        return sum(int(n * longest * (6 * width + longest)) for n, longest in rows)

    apart = min(range(len(groups)), key=cost)
    return [*groups[:apart], np.concatenate(groups[apart:])]
