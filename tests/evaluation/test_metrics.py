"""Intervals and paired comparisons against closed forms and published numbers."""

import math

import numpy as np
import pytest

from rmas_jax.evaluation.metrics import paired_difference, wilson_interval

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
    assert (pair.n, pair.only_a, pair.only_b, pair.difference) == (50, 12, 2, 0.2)
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
