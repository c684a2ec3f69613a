"""Families of comparisons, bootstrap, power and seeds, against definitions and simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rmas_jax.evaluation.comparisons import (
    bootstrap_interval,
    holm,
    seed_effect,
    smallest_difference,
)
from rmas_jax.evaluation.metrics import paired_difference, wilson_interval

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_by_hand():
    # Sorted .005, .01, .03, .04: times 4, 3, 2, 1, then no smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, float("nan")])


@given(P_VALUES, st.randoms())
def test_holm_lies_between_none_and_bonferroni_and_keeps_order(values, random):
    adjusted = holm(values)
    assert all(
        p <= a <= min(1, p * len(values)) + 1e-12 for p, a in zip(values, adjusted, strict=True)
    )
    shuffled = list(zip(values, adjusted, strict=True))
    random.shuffle(shuffled)
    assert holm([p for p, _ in shuffled]) == [a for _, a in shuffled]


def test_bootstrap_of_many_questions_is_the_normal_interval():
    values = np.random.default_rng(0).exponential(size=2_000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
    interval = bootstrap_interval(values)
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert interval == bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide.low < interval.low < interval.high < wide.high


def test_bootstrap_of_equal_differences_is_a_point():
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)
    with pytest.raises(ValueError, match="at least 2 questions"):
        bootstrap_interval([0.25])


@pytest.mark.parametrize(("questions", "discordant"), [(198, 0.3), (500, 0.2), (1_000, 0.5)])
def test_the_smallest_difference_is_found_as_often_as_promised(questions, discordant):
    difference = smallest_difference(questions, discordant)
    up = (discordant + difference) / 2
    random = np.random.default_rng(0)
    draws = random.multinomial(questions, [up, discordant - up, 1 - discordant], size=2_000)
    only_a, only_b = draws[:, 0], draws[:, 1]
    # The normal test that the formula is of; the exact one, a little stricter, finds fewer.
    z = abs(only_a - only_b) / np.sqrt(np.maximum(only_a + only_b, 1))
    assert np.mean(z > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.04)


def test_thirty_questions_show_large_differences_only():
    assert smallest_difference(30, 0.3) > 0.25 > smallest_difference(500, 0.3) * 3
    assert smallest_difference(5, 0.2) is None and smallest_difference(10, 0.0) is None
    with pytest.raises(ValueError, match="questions=0"):
        smallest_difference(0, 0.5)


def answers_of(random, seeds, questions, *, of_seed, of_question, rest):
    """[seeds, questions] differences around 0 with these standard deviations."""
    return (
        random.normal(0, of_seed, (seeds, 1))
        + random.normal(0, of_question, (1, questions))
        + random.normal(0, rest, (seeds, questions))
    )


@pytest.mark.parametrize(
    "deviations",
    [
        {"of_seed": 0.1, "of_question": 0.3, "rest": 0.3},
        {"of_seed": 0.0, "of_question": 0.3, "rest": 0.3},
        {"of_seed": 0.1, "of_question": 0.0, "rest": 0.3},
    ],
)
def test_the_interval_over_seeds_covers(deviations):
    random = np.random.default_rng(0)
    intervals = [
        seed_effect(answers_of(random, 4, 100, **deviations)).interval for _ in range(1_000)
    ]
    assert 0.93 < np.mean([low <= 0 <= high for low, high in intervals]) <= 1.0


def test_the_interval_over_questions_alone_is_too_narrow_for_new_seeds():
    random = np.random.default_rng(0)
    misses = 0
    for _ in range(200):
        shift = random.normal(0, 0.1, 4)
        a = random.random((4, 100)) < np.clip(0.5 + shift, 0, 1)[:, None]
        b = random.random((4, 100)) < 0.5
        pair = paired_difference(a.ravel(), b.ravel(), items=list(range(100)) * 4)
        low, high = pair.interval
        misses += not low <= 0 <= high
    assert misses > 20  # of 200, where 10 are expected of a 95 % interval


def test_a_seed_effect_of_equal_seeds_is_over_questions():
    values = np.random.default_rng(0).normal(size=50)
    effect = seed_effect(np.tile(values, (3, 1)))
    error = values.std(ddof=1) / np.sqrt(50)
    expected = stats.t.interval(0.95, 49, values.mean(), error)
    assert effect.interval == pytest.approx(expected) and effect.seed_deviation == 0
    assert effect.by_seed == pytest.approx((values.mean(),) * 3)


def test_a_seed_effect_of_differences_that_do_not_vary_has_an_interval():
    low, high = seed_effect(np.zeros((3, 500))).interval
    assert -low == high == wilson_interval(0, 500).high > 0.007
    low, high = seed_effect(np.ones((3, 500))).interval
    assert high == 1 and 1 - low == pytest.approx(wilson_interval(0, 500).high)


@pytest.mark.parametrize("shape", [(2, 10), (3, 1), (3,)])
def test_too_few_seeds_or_questions_are_refused(shape):
    with pytest.raises(ValueError, match="at least 3 seeds and 2 questions"):
        seed_effect(np.zeros(shape))
