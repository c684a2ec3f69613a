"""Statistics of several comparisons, of scores other than right or wrong, and of several seeds.

`metrics` has the intervals of an accuracy and of one paired difference. Here: Holm's correction of
a family of p-values, a paired bootstrap for any score, the smallest difference that a number of
questions can show, and an interval that holds for new questions and for new seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from rmas_jax.evaluation.metrics import Interval, wilson_interval

BATCH = 10**6  # numbers of bootstrap samples in memory at once
MIN_SEEDS = 3  # of a random effect: two values say next to nothing of a variance


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    A test is significant at level a if its adjusted value is at most a; the chance of one false
    finding or more in the family is then at most a, whatever the tests' dependence.

    Raises:
      ValueError: a value is not between 0 and 1.
    """
    p = np.asarray(p_values, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be between 0 and 1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    draws: int = 9_999,
    seed: int = 0,
) -> Interval:
    """Interval of a mean paired difference, by resampling questions.

    Bias-corrected and accelerated (Efron, Journal of the American Statistical Association 82,
    1987), for scores that are not 0 or 1, such as F1. Differences that are all alike give a point.

    Args:
      differences: [N] of each question: the score of one system minus that of the other, means
        over seeds where there are several.
      confidence: of the interval.
      draws: bootstrap samples.
      seed: of the samples.

    Raises:
      ValueError: there are fewer than 2 questions.
    """
    values = np.asarray(differences, float)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"differences must be of at least 2 questions, got shape {values.shape}")
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]))
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=draws,
        confidence_level=confidence,
        method="BCa",
        batch=max(1, BATCH // values.size),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def smallest_difference(
    questions: int, discordant: float, *, level: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest difference of two accuracies that McNemar's test shows on so many questions.

    Sample size of the paired test (Connor, Biometrics 43, 1987), solved for the difference.

    Args:
      questions: N, answered by both systems.
      discordant: share of questions on which one of the two is right, between 0 and 1.
      level: of the two-sided test.
      power: the chance to find such a difference.

    Returns:
      A difference between 0 and `discordant`; None where even the largest would be missed.

    Raises:
      ValueError: no questions, or a share outside 0 and 1.
    """
    if questions < 1 or not 0 <= discordant <= 1:
        raise ValueError(f"questions={questions}, discordant={discordant}: need N >= 1, share 0..1")
    z_level, z_power = stats.norm.ppf(1 - level / 2), stats.norm.ppf(power)

    def missing(difference: float) -> float:
        spread = math.sqrt(discordant - difference**2)
        needed = (z_level * math.sqrt(discordant) + z_power * spread) / math.sqrt(questions)
        return needed - difference

    if not discordant or missing(discordant) > 0:
        return None
    return float(optimize.brentq(missing, 0.0, discordant))


def student_interval(
    mean: float,
    error: float,
    freedom: float,
    *,
    questions: int,
    least: float = 0.0,
    confidence: float = 0.95,
) -> Interval:
    """Student's interval of a mean score of questions, with a variance estimated from few seeds.

    It reaches at least as far to each side as Wilson's of 0 in N: that nothing varied in a sample
    does not show that nothing could.

    Args:
      mean: between `least` and 1.
      error: standard error of the mean.
      freedom: degrees of freedom of the error.
      questions: N.
      least: -1 for differences, 0 for accuracies; the interval is within it and 1.
      confidence: of the interval.
    """
    half = max(
        wilson_interval(0, questions, confidence).high,
        float(stats.t.ppf((1 + confidence) / 2, freedom)) * error,
    )
    return Interval(max(least, mean - half), min(1.0, mean + half))


@dataclasses.dataclass(frozen=True)
class SeedEffect:
    """A mean difference, with questions and seeds as random effects."""

    questions: int
    seeds: int
    difference: float
    interval: Interval
    by_seed: tuple[float, ...]  # the difference of each seed
    seed_deviation: float  # estimated standard deviation between seeds, beyond their questions


def seed_effect(
    differences: Sequence[Sequence[float]] | np.ndarray, confidence: float = 0.95
) -> SeedEffect:
    """A mean difference whose interval covers new questions and new seeds.

    Questions and seeds are crossed random effects: a difference is the mean, an effect of its
    question, one of its seed, and a rest. The variance of the mean over S seeds and N questions is
    (MS_seeds + MS_questions - MS_rest) / (S N), its degrees of freedom are Satterthwaite's, and the
    interval is `student_interval` (Searle, Casella and McCulloch, *Variance Components*, 1992,
    chapter 4).

    Args:
      differences: [S, N] score in 0 to 1 of one system minus that of the other, per seed and
        question.
      confidence: of the interval.

    Raises:
      ValueError: fewer than `MIN_SEEDS` seeds or 2 questions.
    """
    values = np.asarray(differences, float)
    if values.ndim != 2 or values.shape[0] < MIN_SEEDS or values.shape[1] < 2:
        raise ValueError(
            f"differences must be of at least {MIN_SEEDS} seeds and 2 questions, got shape "
            f"{values.shape}"
        )
    seeds, questions = values.shape
    mean, by_seed, by_question = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_question + mean
    freedom = np.array([seeds - 1, questions - 1, (seeds - 1) * (questions - 1)])
    squares = np.array(
        [
            questions * ((by_seed - mean) ** 2).sum(),
            seeds * ((by_question - mean) ** 2).sum(),
            (rest**2).sum(),
        ]
    )
    of_seeds, of_questions, of_rest = mean_squares = squares / freedom
    # A negative estimate of a component is none: at least the larger of the two main ones counts.
    total = max(of_seeds + of_questions - of_rest, of_seeds, of_questions)
    satterthwaite = total**2 / (mean_squares**2 / freedom).sum() if total > 0 else 1.0
    return SeedEffect(
        questions=questions,
        seeds=seeds,
        difference=float(mean),
        interval=student_interval(
            float(mean),
            math.sqrt(total / (seeds * questions)),
            satterthwaite,
            questions=questions,
            least=-1.0,
            confidence=confidence,
        ),
        by_seed=tuple(by_seed.tolist()),
        seed_deviation=math.sqrt(max(of_seeds - of_rest, 0.0) / questions),
    )
