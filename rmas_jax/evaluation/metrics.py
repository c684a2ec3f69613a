"""How sure an accuracy is, and how sure the difference of two is.

Everything is a fraction between 0 and 1 (or -1 and 1 for a difference); percent is for tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Accuracy of `a` minus accuracy of `b` on the same items."""

    n: int  # items that both answered
    only_a: int  # items that only `a` got right
    only_b: int  # items that only `b` got right
    difference: float
    interval: Interval
    p_value: float  # exact two-sided McNemar test of "no difference"


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of an accuracy; stays inside [0, 1] and works at 0 and `n` correct.

    Raises:
        ValueError: `n` is not positive, or `correct` is not within 0 and `n`.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct={correct}, n={n}: need n >= 1 and 0 <= correct <= n")
    low, high = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return Interval(float(low), float(high))


def paired_difference(
    correct_a: Sequence[bool], correct_b: Sequence[bool], confidence: float = 0.95
) -> PairedDifference:
    """Compares two systems that answered the same items, in the same order.

    The p-value is McNemar's exact test: under "no difference" the items that only one of the two
    got right fall to either side like fair coin tosses. The interval is Newcombe's for paired
    proportions (Statistics in Medicine 17, 1998, p. 2635, method 10): the Wilson intervals of
    both accuracies, combined with the correlation of the pairs. Unlike the normal approximation
    it does not shrink to a point where the two systems never differ.

    Raises:
        ValueError: the sequences are empty or of different lengths.
    """
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(
            f"paired answers need two equal, non-empty lengths: {len(correct_a)}, {len(correct_b)}"
        )
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    return PairedDifference(
        n=a.size,
        only_a=only_a,
        only_b=only_b,
        difference=(only_a - only_b) / a.size,
        interval=_newcombe_interval(both, only_a, only_b, neither, confidence),
        p_value=float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0,
    )


def _newcombe_interval(
    both: int, only_a: int, only_b: int, neither: int, confidence: float
) -> Interval:
    """Newcombe's method 10 from the four counts of a paired table."""
    n = both + only_a + only_b + neither
    right_a, right_b = both + only_a, both + only_b
    a, b = wilson_interval(right_a, n, confidence), wilson_interval(right_b, n, confidence)
    mean_a, mean_b = right_a / n, right_b / n

    # Correlation of the two answers; a positive one is pulled towards 0 by a continuity correction.
    margins = right_a * (n - right_a) * right_b * (n - right_b)
    covariance = both * neither - only_a * only_b
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def distance(of_a: float, of_b: float) -> float:
        return math.sqrt(max(of_a**2 - 2 * correlation * of_a * of_b + of_b**2, 0.0))

    difference = mean_a - mean_b
    return Interval(
        difference - distance(mean_a - a.low, b.high - mean_b),
        difference + distance(a.high - mean_a, mean_b - b.low),
    )
