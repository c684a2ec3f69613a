"""Intervals and paired comparisons against closed forms and published numbers."""

import math

import numpy as np
import pytest

from rmas_jax.evaluation.metrics import paired_difference, repeated_interval, wilson_interval

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_by_hand(correct, n, z):
    p = correct / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def answers(both, only_a, only_b, neither):
    """Two answer sheets with the given counts, in a shuffled order."""
    pairs = [(True, True)] * both + [(True, False)] * only_a
    pairs += [(False, True)] * only_b + [(False, False)] * neither
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (1, 10), (81, 263), (60, 200), (7, 7)])
def test_wilson_interval_is_the_closed_form(correct, n):
    assert wilson_interval(correct, n) == pytest.approx(wilson_by_hand(correct, n, Z), abs=1e-12)


def test_wilson_interval_of_the_literature():
    # Newcombe, Statistics in Medicine 17 (1998), p. 857, method 3: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_interval_widens_with_confidence():
    narrow, wide = wilson_interval(30, 100, 0.9), wilson_interval(30, 100, 0.99)
    assert wide.low < narrow.low < 0.3 < narrow.high < wide.high
    assert narrow == pytest.approx(wilson_by_hand(30, 100, 1.6448536269514722), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match=f"correct={correct}, n={n}"):
        wilson_interval(correct, n)


def test_paired_difference_counts_pairs():
    pair = paired_difference(*answers(36, 12, 2, 0))
    assert (pair.items, pair.answers, pair.only_a, pair.only_b) == (50, 50, 12, 2)
    assert pair.difference == 0.2
    # Two-sided sign test: 2 * (C(14,0) + C(14,1) + C(14,2)) / 2^14
    assert pair.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14, abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), p. 2635, method 10.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
    ],
)
def test_paired_interval_of_the_literature(counts, interval):
    assert paired_difference(*answers(*counts)).interval == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (30, 10, 5, 20), (0, 0, 0, 7), (5, 0, 0, 5)])
def test_paired_difference_changes_sign_with_its_sides(counts):
    a, b = answers(*counts)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.difference == -back.difference and forth.p_value == back.p_value
    assert forth.interval == pytest.approx((-back.interval.high, -back.interval.low), abs=1e-12)
    assert forth.interval.low <= forth.difference <= forth.interval.high


def test_systems_that_never_differ_have_no_evidence_but_a_width():
    pair = paired_difference([True] * 20, [True] * 20)
    assert pair.p_value == 1.0 and pair.difference == 0.0
    assert pair.interval.low < 0 < pair.interval.high


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    chances = [0.5, 0.2, 0.1, 0.2]  # both, only a, only b, neither: the true difference is 0.1
    hits = 0
    for counts in random.multinomial(80, chances, size=400):
        interval = paired_difference(*answers(*counts)).interval
        hits += interval.low <= 0.1 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False])])
def test_paired_difference_refuses_what_does_not_pair(a, b):
    with pytest.raises(ValueError, match=f"{len(a)}, {len(b)}"):
        paired_difference(a, b)


# --- items that several seeds answered ---


def test_seeds_that_agree_are_worth_one():
    right = np.arange(100) < 37
    once = wilson_interval(37, 100)
    assert repeated_interval(right, [1] * 100) == pytest.approx(once, abs=1e-12)
    assert repeated_interval(3 * right, [3] * 100) == pytest.approx(once, abs=1e-12)
    a, b = answers(36, 12, 2, 10)
    single = paired_difference(a, b)
    pair = paired_difference(a * 3, b * 3, items=[*range(60)] * 3)
    assert (pair.items, pair.answers, pair.only_a, pair.only_b) == (60, 180, 36, 6)
    assert pair.difference == single.difference
    assert pair.interval == pytest.approx(single.interval, abs=1e-12)
    assert pair.p_value == pytest.approx(single.p_value, abs=1e-12)


@pytest.mark.parametrize("right", [0, 1])
def test_seeds_that_agree_on_everything_are_worth_one(right):
    found = repeated_interval([3 * right] * 50, [3] * 50)
    assert found == pytest.approx(wilson_interval(50 * right, 50), abs=1e-12)


def test_seeds_that_differ_are_worth_more_up_to_all_their_answers():
    once, all_of_them = wilson_interval(50, 100), wilson_interval(100, 200)
    mixed = repeated_interval([2] * 30 + [1] * 40 + [0] * 30, [2] * 100)
    assert once.low < mixed.low < all_of_them.low
    # One seed is right where the other is wrong: no better than independent answers.
    assert repeated_interval([1] * 100, [2] * 100) == pytest.approx(all_of_them, abs=1e-12)


def test_items_that_not_all_seeds_answered_weigh_less():
    right, asked = np.array([2, 1, 0, 1, 1, 0]), np.array([2, 2, 2, 1, 1, 1])
    mean = 5 / 9
    variance = sum((right - mean * asked) ** 2) / 81
    n = mean * (1 - mean) / variance
    assert repeated_interval(right, asked) == pytest.approx(wilson_by_hand(mean * n, n, Z))


def test_randomisation_test_counts_all_signs():
    a = [True, True, True, True, True, False, True]
    b = [False, False, True, False, True, True, True]
    items = [0, 0, 0, 1, 1, 2, 3]
    # Differences by item are 2, 1, -1, 0: of the eight sums of +-2 +-1 +-1, six are 2 or more.
    pair = paired_difference(a, b, items=items)
    assert (pair.items, pair.only_a, pair.only_b) == (4, 3, 1)
    assert pair.p_value == pytest.approx(6 / 8)


def draw_repeated(random, chances_of, count=150, seeds=3):
    """Answers of two systems [count, seeds], which vary less over seeds than over items."""
    draws = random.uniform(size=(count, 1)) + 0.15 * random.normal(size=(2, count, seeds))
    return draws < np.array(chances_of).reshape(2, 1, 1)


def test_repeated_intervals_cover_the_truth_where_pooled_ones_do_not():
    random = np.random.default_rng(0)
    chances = (0.5, 0.42)
    true_a, true_b = draw_repeated(random, chances, count=200_000).mean((1, 2))
    hits = {"accuracy": 0, "pooled accuracy": 0, "difference": 0}
    p_values = []
    for _ in range(300):
        a, b = draw_repeated(random, chances)
        low, high = repeated_interval(a.sum(1), [3] * 150)
        hits["accuracy"] += low <= true_a <= high
        low, high = wilson_interval(a.sum(), a.size)
        hits["pooled accuracy"] += low <= true_a <= high
        items = np.repeat(np.arange(150), 3).tolist()
        low, high = paired_difference(a.ravel(), b.ravel(), items=items).interval
        hits["difference"] += low <= true_a - true_b <= high
        null = draw_repeated(random, (0.5, 0.5)).reshape(2, -1)
        p_values.append(paired_difference(*null, items=items).p_value)
    shares = {name: count / 300 for name, count in hits.items()}
    assert 0.92 <= shares["accuracy"] <= 0.98 and 0.92 <= shares["difference"] <= 0.99
    assert shares["pooled accuracy"] < 0.85
    assert np.mean(np.array(p_values) < 0.05) <= 0.08


@pytest.mark.parametrize(
    ("correct", "asked", "message"),
    [
        ([], [], "got 0, 0"),
        ([1], [1, 1], "got 1, 2"),
        ([2], [1], r"correct from 0 to answers, for every item, got \[2\] of \[1\]"),
        ([0], [0], r"answers must be at least 1, .* got \[0\] of \[0\]"),
    ],
)
def test_repeated_interval_refuses_impossible_counts(correct, asked, message):
    with pytest.raises(ValueError, match=message):
        repeated_interval(correct, asked)


def test_paired_difference_refuses_items_that_do_not_fit():
    with pytest.raises(ValueError, match="items must be one per answer, 2, got 1"):
        paired_difference([True, False], [True, False], items=["a"])
