"""The audit section of an evaluation."""

import dataclasses

from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import MAX_ROUNDS

MESSAGES = ("none", "zeros", "noise", "other", "own")  # what may arrive instead of the true one
SCOPES = ("all", "edge", "round", "cell")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig(Section):
    """A causal audit: messages are replaced at the receiver's boundary.

    It is copied to the report, and hashed before anything is trained or measured.
    """

    question: str = option(
        "the question that the audit answers, for its reader",
        "Do receivers use the content of this message, or would another one do as well?",
    )
    rounds: int | None = option("R; null: system.rounds", None, at_least=1, at_most=MAX_ROUNDS)
    messages: tuple[str, ...] = option(
        "what arrives instead: none (an empty slot), zeros, noise (with the true messages' mean "
        "and covariance per position), other (another item's), own (the receiver thinks M steps "
        "itself: the compute of one message)",
        MESSAGES,
        choices=MESSAGES,
        distinct=True,
    )
    draws: int = option("other items drawn for each item", 3, at_least=1, at_most=100)
    scopes: tuple[str, ...] = option(
        "where it arrives: on all edges in all rounds, on one edge, in one round, or in one cell "
        "of edge and round",
        SCOPES,
        choices=SCOPES,
        distinct=True,
    )
    margin: float = option(
        "decision rule: content is used if the interval of the content-attributable gain over all "
        "edges and rounds lies above this difference of accuracies",
        0.0,
        at_least=0,
        at_most=1,
    )
    confidence: float = option("of intervals", 0.95, above=0, at_most=0.9999)
