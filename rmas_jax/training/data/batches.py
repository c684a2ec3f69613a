"""Batches of a split: rows of similar length together, in an order given by a key."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import grain
import jax
import numpy as np

from rmas_jax.config import ConfigError
from rmas_jax.sharding import local_rows
from rmas_jax.training.data.encoding import EncodedItems, TrainingData

BUCKETS = 4  # groups of rows by length, at most
BATCHES_AHEAD = 2  # prefetched


class Batches:
    """The batch of every step: a function of a key and the step alone.

    A resumed run therefore reads the batches of an uninterrupted one, and iterators have no state
    to save. Rows of similar length are in at most `BUCKETS` groups, each up to half as long as the
    previous one and padded to the tiled widths of its longest row: little padding, one program per
    group. A row is padded when a step reads it, in the processes whose devices read it.

    A group is a stream of epochs over its rows, each in a new order, cut into batches:

        a group of 3, batches of 2:   2 0 1 | 1 2 0 | ...   ->   (2 0) (1 1) (2 0) ...

    At every step, the numbers of reads of a group's rows differ by at most one; a batch across two
    epochs may hold a row twice. Groups alternate in proportion to their sizes, which grain rounds
    to a hundredth of the smallest. An epoch of the split is a number of steps: its rows divided by
    the batch size, rounded up.
    """

    def __init__(
        self,
        data: EncodedItems,
        *,
        batch_size: int,
        key: jax.Array,
        text_width: int = 0,
        needs_texts: bool = False,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Cuts a split into groups.

        Args:
          data: the split.
          batch_size: rows of a batch.
          key: for the order.
          text_width: see `EncodedItems.widths`.
          needs_texts: leaves out rows with a text, of any role in any round, of fewer tokens than
            `text_width`.
          mesh: devices of the steps.

        Raises:
          ConfigError: the rows do not fill a batch.
        """
        rows = np.arange(len(data))
        if needs_texts:
            shortest = [lengths.min(axis=1) for lengths in data.text_lengths.values()]
            rows = np.flatnonzero(np.min(shortest, axis=0) >= text_width)
        self.left_out = len(data) - len(rows)
        if len(rows) < batch_size:
            why = f" ({self.left_out} with texts of fewer than {text_width} tokens left out)"
            raise ConfigError(
                f"batch_size must be at most the number of training items, {len(rows)}"
                f"{why if self.left_out else ''}, got {batch_size}"
            )
        self.groups = [rows[group] for group in length_groups(data.lengths[rows], batch_size)]
        self._data = data
        self._widths = [
            data.widths(group, text_width=text_width, is_tiled=True) for group in self.groups
        ]
        self._here = local_rows(batch_size, mesh)
        # Grain adds the epoch to a seed: adjacent seeds would share orders.
        random = np.random.default_rng(jax.random.key_data(key).tolist())
        seeds = random.integers(2**32, size=len(self.groups)).tolist()
        streams = [
            grain.MapDataset.source(np.stack([np.full(len(rows), group), np.arange(len(rows))], 1))
            .shuffle(seed)
            .repeat()
            .batch(batch_size, drop_remainder=True, batch_fn=np.array)
            for group, (rows, seed) in enumerate(zip(self.groups, seeds, strict=True))
        ]
        self.batch_size = batch_size
        self.steps_per_epoch = math.ceil(len(rows) / batch_size)
        # Step -> group and member [batch_size, 2].
        self._members = grain.MapDataset.mix(streams, [len(rows) for rows in self.groups])
        self._batches = self._members.map(self._padded)

    def rows(self, step: int) -> np.ndarray:
        """Row numbers [batch_size] of a step in the split."""
        group, members = self._members[step].T
        return self.groups[group[0]][members]

    def __getitem__(self, step: int) -> TrainingData:
        """The rows of a step's batch that this process's devices read (`local_rows`)."""
        return self._batches[step]

    def _padded(self, found: np.ndarray) -> TrainingData:
        group, members = found[0, 0], found[self._here, 1]
        return self._data.batch(self.groups[group][members], self._widths[group])

    def longest(self) -> TrainingData:
        """A whole batch of the largest shapes that any step reads."""
        batches = [
            self._data.batch(group[: self.batch_size], widths)
            for group, widths in zip(self.groups, self._widths, strict=True)
        ]
        return max(batches, key=lambda batch: sum(x.size for x in jax.tree.leaves(batch)))

    @contextlib.contextmanager
    def read_ahead(self, first: int, stop: int) -> Iterator[Iterator[TrainingData]]:
        """An iterator over the batches of steps `first` to `stop - 1`, in order.

        A thread prepares the next ones while a step runs; it ends with the context.
        """
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD)
        with contextlib.closing(iter(self._batches[first:stop].to_iter_dataset(options))) as ahead:
            yield ahead


def length_groups(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row numbers by length: in (L/2, L], in (L/4, L/2], ..., longest first.

    A group smaller than a batch joins its longer neighbour, the longest its shorter one.
    """
    halvings = np.floor(np.log2(lengths.max() / lengths)).astype(int)
    halvings = np.minimum(halvings, BUCKETS - 1)
    groups: list[np.ndarray] = []
    waiting = np.zeros(0, int)
    for group in reversed(range(BUCKETS)):
        waiting = np.concatenate([waiting, np.flatnonzero(halvings == group)])
        if len(waiting) >= batch_size:
            groups.append(waiting)
            waiting = np.zeros(0, int)
    if len(waiting):
        groups.append(np.concatenate([groups.pop(), waiting]))
    return groups[::-1]
