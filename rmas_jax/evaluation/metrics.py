"""Confidence intervals of an accuracy and of the difference of two.

All values are fractions between 0 and 1 (or -1 and 1 for a difference); percent is for tables.

Answers of several seeds to the same question are not independent. Intervals are therefore over
items, each with all its answers: the variation over sets of questions with these seeds. They do not
cover the variation over seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from rmas_jax.host.errors import shown


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Accuracy of `a` minus accuracy of `b` on the same items."""

    items: int  # answered by both
    answers: int  # of each, over all seeds
    only_a: int  # answers right in `a` only
    only_b: int  # answers right in `b` only
    difference: float
    interval: Interval
    p_value: float  # exact, two-sided, of "no difference"


def wilson_interval(correct: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of an accuracy; stays inside [0, 1] and works at 0 and `n` correct.

    Counts may be fractions, such as effective counts.

    Raises:
        ValueError: `n` is not positive, or `correct` is not within 0 and `n`.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(
            f"n must be at least 1, and correct from 0 to n, got correct={correct}, n={n}"
        )
    z = float(stats.norm.ppf((1 + confidence) / 2))
    mean = correct / n
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    # Exact ends are free of rounding errors.
    return Interval(0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def repeated_interval(
    correct: Sequence[int] | np.ndarray,
    answers: Sequence[int] | np.ndarray,
    confidence: float = 0.95,
) -> Interval:
    """Interval of an accuracy with several answers per item, such as by several seeds.

    Wilson's interval at the effective number of answers: the number of independent answers with the
    variance of the accuracy over clusters by item (Franco, Little, Louis and Slud, Journal of
    Survey Statistics and Methodology 7, 2019, p. 334). With one answer per item, or if all answers
    to an item agree, it equals Wilson's interval over items; if they vary it is narrower, at most
    as narrow as for independent answers.

    Args:
        correct: number of right answers to each item.
        answers: number of answers to each item, at least one.

    Raises:
        ValueError: no items, or inconsistent counts.
    """
    right, counts = np.asarray(correct, float), np.asarray(answers, float)
    if right.shape != counts.shape or right.ndim != 1 or not right.size:
        raise ValueError(
            "correct and answers must have one length of at least 1, got "
            f"{len(correct)}, {len(answers)}"
        )
    if (counts < 1).any() or (right < 0).any() or (right > counts).any():
        raise ValueError(
            "answers must be at least 1, and correct from 0 to answers, for every item, got "
            f"{shown(correct)} of {shown(answers)}"
        )
    mean = float(right.sum() / counts.sum())
    effective = _effective_answers(right, counts)
    return wilson_interval(min(mean * effective, effective), effective, confidence)


def paired_difference(
    correct_a: Sequence[bool],
    correct_b: Sequence[bool],
    confidence: float = 0.95,
    *,
    items: Sequence[Hashable] | None = None,
) -> PairedDifference:
    """Compares the answers of two systems to the same items, in the same order.

    The interval combines those of both accuracies with the correlation of the pairs: Newcombe's for
    paired proportions (Statistics in Medicine 17, 1998, p. 2635, method 10), and where items have
    several answers the same with `repeated_interval` and the correlation of their means (Zou and
    Donner, Statistics in Medicine 27, 2008, p. 1693). Unlike the normal approximation it does not
    shrink to a point where the two systems never differ.

    The p-value is Fisher's randomisation test of pairs: under "no difference" each item's
    difference, over all its answers, has either sign with equal probability. With one answer per
    item, or if all answers to an item agree, it equals McNemar's exact test over items.

    Args:
        correct_a: whether each answer of the first system is right.
        correct_b: the same for the second.
        items: the item of each answer; an item may repeat. None: all items differ.

    Raises:
        ValueError: the sequences are empty or of different lengths.
    """
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(
            "correct_a and correct_b must have one length of at least 1, got "
            f"{len(correct_a)}, {len(correct_b)}"
        )
    if items is None:
        items = range(a.size)
    if len(items) != a.size:
        raise ValueError(f"items must be one per answer, {a.size}, got {len(items)}")
    number = {item: i for i, item in enumerate(dict.fromkeys(items))}
    item_of = np.array([number[item] for item in items])
    right_a, right_b, counts = (
        np.bincount(item_of, counted) for counted in (a, b, np.ones(a.size))
    )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return PairedDifference(
        items=len(number),
        answers=a.size,
        only_a=only_a,
        only_b=only_b,
        difference=(only_a - only_b) / a.size,
        interval=_newcombe_interval(right_a, right_b, counts, confidence),
        p_value=_randomisation_test((right_a - right_b).astype(int)),
    )


def _effective_answers(right: np.ndarray, counts: np.ndarray) -> float:
    """Independent answers with the variance of the accuracy over items [N]; at most all answers."""
    total = counts.sum()
    mean = right.sum() / total
    if mean in (0, 1):  # no variance: all answers agree
        return float(total**2 / (counts**2).sum())
    # Variance of an accuracy as a ratio of two sums over items.
    variance = ((right - mean * counts) ** 2).sum() / total**2
    return float(total if variance == 0 else min(mean * (1 - mean) / variance, total))


def _newcombe_interval(
    right_a: np.ndarray, right_b: np.ndarray, counts: np.ndarray, confidence: float
) -> Interval:
    """Newcombe's method 10 from right answers and answers of each item [N]."""
    a, b = (repeated_interval(right, counts, confidence) for right in (right_a, right_b))
    mean_a, mean_b = right_a.sum() / counts.sum(), right_b.sum() / counts.sum()

    # Correlation of the two; a continuity correction moves a positive one towards 0.
    off_a, off_b = (
        (r - r.sum() / counts.sum() * counts) / counts.mean() for r in (right_a, right_b)
    )
    margins = (off_a**2).sum() * (off_b**2).sum()
    covariance = (off_a * off_b).sum()
    if covariance > 0:
        covariance = max(covariance - 1 / 2, 0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def distance(of_a: float, of_b: float) -> float:
        return math.sqrt(max(of_a**2 - 2 * correlation * of_a * of_b + of_b**2, 0.0))

    difference = float(mean_a - mean_b)
    return Interval(
        difference - distance(mean_a - a.low, b.high - mean_b),
        difference + distance(a.high - mean_a, mean_b - b.low),
    )


def _randomisation_test(differences: np.ndarray) -> float:
    """Probability that `differences` [N] with random signs have a sum at least as far from 0."""
    # The signed sum of all differences of one size is binomial, in steps of two.
    chances = np.ones(1)  # of the sums -S, .., S so far
    for size, count in zip(*np.unique(abs(differences), return_counts=True), strict=True):
        if size:
            own = np.zeros(2 * size * count + 1)
            own[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
            chances = np.convolve(chances, own)
    sums = np.arange(len(chances)) - len(chances) // 2
    return float(min(chances[abs(sums) >= abs(differences.sum())].sum(), 1.0))
