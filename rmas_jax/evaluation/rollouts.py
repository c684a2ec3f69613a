"""Writes the rollouts of a split's batches, and measures their seconds.

    rows of a batch --listen--> what the answering agent reads --write--> rollout 0, rollout 1, ...

Compile time is excluded: a part in which anything was compiled runs again for its time
(`Shared.timed`). A second run gives the same answers, except with tools that do not; these compile
few programs too, as texts are padded to powers of two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import BatchAnswers, Listened
from rmas_jax.evaluation.batches import Batch
from rmas_jax.host.nonfinite import NonFiniteError

Listen = Callable[[np.ndarray], Listened]  # rows [B] of a split -> what precedes their answers


class Work(NamedTuple):
    """A batch and its missing rollouts."""

    batch: Batch
    rollouts: Sequence[int]


class Written(NamedTuple):
    """One rollout of a batch."""

    batch: Batch
    rollout: int
    answers: BatchAnswers  # of this rollout alone
    seconds: float  # per row


def write_batches(
    answerer: Answerer, listen: Listen, works: Sequence[Work], *, seed: int
) -> Iterator[Written]:
    """Writes batch by batch, rollout by rollout; seconds of listening count to a batch's first one.

    Raises:
      NonFiniteError: an agent's numbers are NaN or infinite; its rows are places in the split.
    """
    for batch, rollouts in works:
        keys = answerer.keys(seed, batch.rows)
        try:
            listened, seconds = answerer.shared.timed(functools.partial(listen, batch.rows))
            for k in rollouts:
                write = functools.partial(answerer.write_rollouts, listened, [keys[k]])
                answers, more = answerer.shared.timed(write)
                yield Written(batch, k, answers, (seconds + more) / len(batch.rows))
                seconds = 0.0
        except NonFiniteError as error:
            raise error.at(batch.rows) from None
