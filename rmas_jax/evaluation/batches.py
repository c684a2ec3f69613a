"""Batches of a split: items of like length together, in an order that no batch size changes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rmas_jax.config import ConfigError
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.methods import SHUFFLED
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
    tokenizers. The order inside a class is random, for the shuffled control, and the same every
    time.
    """
    read = {"question", *columns}

    def length(item: Example) -> int:
        return sum(len(text) for name, text in item.inputs.items() if name in read)

    order = np.random.default_rng(ORDER_SEED).permutation(len(items))
    width = np.array([declared_width(length(items[place])) for place in order], int)
    return order[np.argsort(-width, kind="stable")]


def batches(order: np.ndarray, size: int) -> Iterator[Batch]:
    """The batches of items in running order [N], each of `size` rows.

    The item before a batch's first one fills up an incomplete batch: the shuffled control gives the
    first row the thoughts of the last, so every item still gets another's.
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
) -> None:
    """Checks that the shuffled control gives every item the thoughts of another question.

    `columns` are those of prompts, as in `running_order`.

    Raises:
      ConfigError: batches of one item, or the same question in adjacent items.
    """
    if batch_size < 2:
        raise ConfigError(f"evaluation.batch_size={batch_size}: {SHUFFLED} needs at least 2")
    for split, items in splits.items():
        for rows, kept in batches(running_order(items, columns), batch_size):
            questions = [items[row].question for row in rows]
            for i in range(kept):
                if questions[i] == questions[i - 1]:
                    raise ConfigError(
                        f"evaluation.benchmarks: {name}: {split}: {SHUFFLED} would give an "
                        f"item thoughts about its own question, {questions[i]!r}; leave repeated "
                        "questions out, or the control (evaluation.methods)"
                    )
