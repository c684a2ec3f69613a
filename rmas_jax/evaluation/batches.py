"""Batches of a split: items of like length together, in an order that no batch size changes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rmas_jax.config import ConfigError
from rmas_jax.data.examples import Example
from rmas_jax.prompts import declared_width

ORDER_SEED = 0  # of the order of items of like length


class Batch(NamedTuple):
    """Items that run together."""

    rows: np.ndarray  # [B] places in the split
    kept: int  # that many count; the others fill the batch up


def running_order(items: Sequence[Example], columns: Collection[str] = ()) -> np.ndarray:
    """Places [N] of a split's items in the order in which they run.

    The longest questions come first, so that a lack of memory shows at once; those columns count
    that prompts have. Lengths are classes of characters, because the agents have different
    tokenizers. The order inside a class is random, for shuffled controls, and the same every
    time.
    """

    def length(item: Example) -> int:
        return sum(map(len, _read(item, columns).values()))

    order = np.random.default_rng(ORDER_SEED).permutation(len(items))
    width = np.array([declared_width(length(items[place])) for place in order], int)
    return order[np.argsort(-width, kind="stable")]


def _read(item: Example, columns: Collection[str]) -> dict[str, str]:
    """The texts of an item that prompts have."""
    return {name: text for name, text in item.inputs.items() if name in {"question", *columns}}


def batches(order: np.ndarray, size: int) -> Iterator[Batch]:
    """The batches of items in running order [N], each of `size` rows.

    The item before a batch's first one fills up an incomplete batch: shuffled controls give the
    first row what the last has sent, so every item still gets another's.
    """
    for start in range(0, len(order), size):
        kept = min(size, len(order) - start)
        rows = np.full(size, order[start - 1])
        rows[:kept] = order[start : start + kept]
        yield Batch(rows, kept)


def check_neighbours(
    name: str,
    splits: Mapping[str, Sequence[Example]],
    batch_size: int,
    columns: Collection[str] = (),
    *,
    control: str,
) -> None:
    """Checks that a shuffled control gives every item what was sent for another one.

    Items are alike if their questions are, and the columns of prompts.

    `columns` are those of prompts, as in `running_order`; `control` is the method's name.

    Raises:
      ConfigError: batches of one item, or adjacent items that are alike.
    """
    if batch_size < 2:
        raise ConfigError(f"evaluation.batch_size={batch_size}: {control} needs at least 2")
    for split, items in splits.items():
        for rows, kept in batches(running_order(items, columns), batch_size):
            read = [_read(items[row], columns) for row in rows]
            for i in range(kept):
                if read[i] == read[i - 1]:
                    question = items[rows[i]].question
                    raise ConfigError(
                        f"evaluation.benchmarks: {name}: {split}: {control} would give an item a "
                        f"message about its own question, {question!r}; leave repeated questions "
                        "out, or the control (evaluation.methods)"
                    )
