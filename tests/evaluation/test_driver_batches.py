"""How items become batches, and how often a part of one runs to time it."""

import jax
import numpy as np
import pytest

from rmas_jax.agents import answers
from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation.batches import batches, check_neighbours, running_order
from rmas_jax.evaluation.shared import Shared
from rmas_jax.prompts import declared_width


def items_of(lengths):
    return [Example(i, "x" * n, "") for i, n in enumerate(lengths)]


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_every_item_counts_once_and_gets_another_ones_thoughts(count, size):
    order, counted = np.random.default_rng(0).permutation(count), []
    for rows, kept in batches(order, size):
        assert rows.shape == (size,)
        counted += rows[:kept].tolist()
        received = np.roll(rows, 1)  # what a `ShuffledChannel` sends
        assert np.all(rows[:kept] != received[:kept])
    assert counted == order.tolist()


def test_items_of_like_length_are_together_and_in_random_order():
    lengths = np.random.default_rng(1).integers(1, 300, 400)
    order = running_order(items_of(lengths))
    assert sorted(order) == list(range(400))
    widths = [declared_width(n) for n in lengths[order].tolist()]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) < 15
    padding = [
        sum(lengths[rows].max() * size for rows, _ in batches(rows_of, size)) / lengths.sum()
        for size in (20,)
        for rows_of in (order, np.arange(400))
    ]
    assert padding[0] < 1.25 < 1.7 < padding[1]  # the given order pads most rows
    alike = running_order(items_of([7] * 400))
    assert np.mean(np.diff(alike) > 0) == pytest.approx(0.5, abs=0.1)  # not that of the file


def test_a_part_runs_until_nothing_is_compiled():
    widths = iter([3, 5, 5])  # as of a tool whose result differs

    def answer():
        return len(answers._next_keys(jax.random.split(jax.random.key(0), next(widths)), 1))

    jax.clear_caches()
    written, seconds = Shared().timed(answer)
    assert written == 5 and not list(widths) and seconds > 0


def test_neighbours_may_share_a_question_where_what_they_read_beside_it_differs():
    items = [Example(str(i), "who?", "a", fields={"facts": f"fact {i}"}) for i in range(4)]
    known = {"control": "shuffled_text"}
    check_neighbours("data", {"test": items}, 2, ["facts"], **known)
    with pytest.raises(ConfigError, match=r"shuffled_text would give an item .* 'who\?'"):
        check_neighbours("data", {"test": items}, 2, **known)  # no prompt has the facts
    with pytest.raises(ConfigError, match="batch_size=1: shuffled_text needs at least 2"):
        check_neighbours("data", {"test": items}, 1, ["facts"], **known)
