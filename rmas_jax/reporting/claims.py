"""The paper's claims, checked from the results of an evaluation.

Verdicts follow point estimates. The numbers beside them show their certainty: with answers by item,
the 95 % interval of the paired difference, which is 0 for two equal methods; otherwise whether the
intervals of both accuracies are disjoint. "Every round" in a claim means every number of rounds
that both methods have.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable

from rmas_jax.evaluation import methods
from rmas_jax.reporting.results import (
    Result,
    Results,
    Split,
    count_rounds,
    points,
    three_digits,
)

HOLDS, FAILS, NOT_MEASURED = "holds", "does not hold", "not measured"
COLLAPSE = 0.5  # a control has collapsed when it keeps at most this share of the accuracy


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim on one split."""

    split: Split
    verdict: str
    numbers: str  # basis of the verdict


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim over all splits."""

    name: str
    statement: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """Holds only if it holds on every split; one failure is enough to fail."""
        verdicts = {finding.verdict for finding in self.findings}
        if FAILS in verdicts:
            return FAILS
        return HOLDS if verdicts == {HOLDS} else NOT_MEASURED

    @property
    def is_measured(self) -> bool:
        """Whether it is, on some split."""
        return any(finding.verdict != NOT_MEASURED for finding in self.findings)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A claim on latent against another method, at the same number of rounds."""

    name: str
    statement: str
    against: str  # method
    quantity: str  # attribute of Result
    passes: Callable[[float, float], bool]  # (latent, other)
    last_round_only: bool = False
    passes_last: Callable[[float, float], bool] | None = None  # also, at the last round


def _has_collapsed(latent: float, control: float) -> bool:
    # The first condition matters at zero accuracy, which cannot collapse.
    return control < latent and control <= COLLAPSE * latent


_COLLAPSES = f"keeps at most {100 * COLLAPSE:.0f} % of the accuracy at the last round."
COMPARISONS = (
    Comparison(
        "at_least_text",
        "Latent is at least as accurate as text at every round.",
        methods.TEXT,
        "accuracy",
        operator.ge,
    ),
    Comparison(
        "fewer_tokens",
        "Latent generates fewer tokens than text at every round.",
        methods.TEXT,
        "tokens",
        operator.lt,
    ),
    Comparison(
        "less_time",
        "Latent takes less time than text at every round.",
        methods.TEXT,
        "seconds",
        operator.lt,
    ),
    Comparison(
        "trained_above_aligned",
        "Trained links are at least as accurate as aligned-only links at every round, and more "
        "accurate at the last.",
        methods.ALIGNED,
        "accuracy",
        operator.ge,
        passes_last=operator.gt,
    ),
    Comparison(
        "collapses_without_latents",
        f"Without latents the system {_COLLAPSES}",
        methods.NO_LATENTS,
        "accuracy",
        _has_collapsed,
        last_round_only=True,
    ),
    Comparison(
        "collapses_with_shuffled_latents",
        f"With another item's latents the system {_COLLAPSES}",
        methods.SHUFFLED,
        "accuracy",
        _has_collapsed,
        last_round_only=True,
    ),
)


def check_claims(results: Results) -> list[Claim]:
    """Checks every claim on every split.

    Pools seeds. The last claim holds on a split if all other measured claims do, at least two.
    """
    claims = [
        Claim(
            "rises_with_rounds",
            "Accuracy rises with rounds: no round is below the one before, the last is above the "
            "first.",
            tuple(_rises(results, split) for split in results.splits),
        ),
        Claim(
            "above_best_single",
            "The last round is more accurate than the best single agent.",
            tuple(_above_best_single(results, split) for split in results.splits),
        ),
    ]
    claims += [
        Claim(
            comparison.name,
            comparison.statement,
            tuple(_compare(results, split, comparison) for split in results.splits),
        )
        for comparison in COMPARISONS
    ]
    return [*claims, _on_every_split(claims, results.splits)]


def intervals_are_apart(a: Result, b: Result) -> bool:
    """Whether the 95 % intervals of two accuracies share no point."""
    return a.interval.high < b.interval.low or b.interval.high < a.interval.low


def _rises(results: Results, split: Split) -> Finding:
    curve = list(results.over_rounds(split, methods.LATENT).values())
    if len(curve) < 2:
        return Finding(split, NOT_MEASURED, "needs the trained links at two numbers of rounds")
    never_falls = all(b.accuracy >= a.accuracy for a, b in itertools.pairwise(curve))
    first, last = curve[0], curve[-1]
    path = " → ".join(f"{100 * result.accuracy:.1f}" for result in curve)
    numbers = (
        f"{path} % at {count_rounds(*(result.rounds for result in curve))}; last and first: "
        f"{_evidence(results, [(last, first)])}"
    )
    return Finding(split, _verdict(never_falls and last.accuracy > first.accuracy), numbers)


def _above_best_single(results: Results, split: Split) -> Finding:
    curve = list(results.over_rounds(split, methods.LATENT).values())
    single = results.best_single(split)
    if not curve or single is None:
        return Finding(split, NOT_MEASURED, "needs the trained links and a single agent")
    last = curve[-1]
    label = methods.describe(single.method).label
    numbers = (
        f"{100 * last.accuracy:.1f} % at {count_rounds(last.rounds)}, {label} "
        f"{100 * single.accuracy:.1f} %; {_evidence(results, [(last, single)])}"
    )
    return Finding(split, _verdict(last.accuracy > single.accuracy), numbers)


def _compare(results: Results, split: Split, comparison: Comparison) -> Finding:
    latent = results.over_rounds(split, methods.LATENT)
    other = results.over_rounds(split, comparison.against)
    shared = [rounds for rounds in latent if rounds in other]
    label = methods.describe(comparison.against).label
    if not shared:
        return Finding(
            split, NOT_MEASURED, f"needs the trained links and {label} at the same rounds"
        )
    compared = shared[-1:] if comparison.last_round_only else shared
    pairs = [(latent[rounds], other[rounds]) for rounds in compared]
    quantity = comparison.quantity
    passed = all(
        comparison.passes(getattr(ours, quantity), getattr(theirs, quantity))
        for ours, theirs in pairs
    )
    if comparison.passes_last is not None:
        ours, theirs = pairs[-1]
        passed &= comparison.passes_last(getattr(ours, quantity), getattr(theirs, quantity))
    numbers = f"trained links / {label}: {_values(pairs, quantity)} at {count_rounds(*compared)}"
    if quantity == "accuracy":
        numbers += f"; {_evidence(results, pairs)}"
    unshared = sorted(set(latent) ^ set(other))
    if unshared:
        numbers += f"; only one of the two measured at {count_rounds(*unshared)}"
    return Finding(split, _verdict(passed), numbers)


def _on_every_split(claims: list[Claim], splits: list[Split]) -> Claim:
    statement = "Everything that was measured holds on every split."
    if len(splits) < 2:
        findings = [Finding(split, NOT_MEASURED, "the only split") for split in splits]
        return Claim("every_split", statement, tuple(findings))
    findings = []
    for position, split in enumerate(splits):
        verdicts = {claim.name: claim.findings[position].verdict for claim in claims}
        measured = [name for name, verdict in verdicts.items() if verdict != NOT_MEASURED]
        failed = [name for name in measured if verdicts[name] == FAILS]
        numbers = f"{len(measured) - len(failed)} of {len(measured)} measured claims hold"
        if failed:
            numbers += f"; not {', '.join(name.replace('_', ' ') for name in failed)}"
        verdict = _verdict(not failed) if measured else NOT_MEASURED
        findings.append(Finding(split, verdict, numbers))
    return Claim("every_split", statement, tuple(findings))


def _verdict(holds: bool) -> str:
    return HOLDS if holds else FAILS


def _values(pairs: list[tuple[Result, Result]], quantity: str) -> str:
    if quantity == "accuracy":
        both = (
            f"{100 * ours.accuracy:.1f} / {100 * theirs.accuracy:.1f}" for ours, theirs in pairs
        )
        return f"{', '.join(both)} %"
    both = (
        " / ".join(three_digits(getattr(result, quantity)) for result in pair) for pair in pairs
    )
    return f"{', '.join(both)} {quantity}"


def _evidence(results: Results, pairs: list[tuple[Result, Result]]) -> str:
    """Evidence on the order of accuracies, pair by pair."""
    compared = [results.compare(ours, theirs) for ours, theirs in pairs]
    known = [pair for pair in compared if pair is not None]
    if len(known) == len(compared):
        settled = [pair.interval.low > 0 or pair.interval.high < 0 for pair in known]
        found = f"by item {', '.join(map(points, known))} points"
        yes, no = "order settled", "order open"
    else:
        settled = [intervals_are_apart(ours, theirs) for ours, theirs in pairs]
        found, yes, no = "", "intervals apart", "intervals overlap"
    if any(settled) and not all(settled):
        at = [
            ours.rounds for (ours, _), is_settled in zip(pairs, settled, strict=True) if is_settled
        ]
        yes += f" at {count_rounds(*at)}"
    return f"{found}, {yes if any(settled) else no}".removeprefix(", ")
