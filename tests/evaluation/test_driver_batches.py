"""How the driver cuts items into batches, and how often it runs one to time it."""

import jax
import numpy as np
import pytest

from rmas_jax.agents import answers
from rmas_jax.evaluation import answerer, driver


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_every_item_counts_once_and_gets_another_ones_thoughts(count, size):
    counted = []
    for rows, kept in driver.batches(count, size):
        assert rows.shape == (size,)
        counted += rows[:kept].tolist()
        received = np.roll(rows, 1)  # what a `ShuffledChannel` sends
        assert np.all(rows[:kept] != received[:kept])
    assert counted == list(range(count))


def test_a_batch_runs_until_nothing_is_compiled():
    widths = iter([3, 5, 5])  # as of a tool whose result differs

    def answer():
        texts = answers._next_keys(jax.random.split(jax.random.key(0), next(widths)), 1)
        return answerer.BatchAnswers([len(texts)], None, None, None, ())

    jax.clear_caches()
    written, seconds = driver._timed(answer)
    assert written.rollouts == [5] and not list(widths) and seconds > 0
