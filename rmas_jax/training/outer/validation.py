"""Validation of the outer loop: losses and exact matches on held-out items, without gradients."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rmas_jax.config import PhaseConfig
from rmas_jax.links import Links
from rmas_jax.team import Team
from rmas_jax.training.curves import as_values
from rmas_jax.training.data.encoding import EncodedItems
from rmas_jax.training.rollouts import roll_outs


def validate(team: Team, links: Links, data: EncodedItems, phase: PhaseConfig) -> dict[str, Any]:
    """Values for a row of the curves.

    Returns:
      "loss", of the answerer's text in the last round; "text_loss/ROLE" and
      "text_exact_match/ROLE", lists of R means over the items.

    Raises:
      NonFiniteError: an agent's numbers are NaN or infinite.
    """
    size = validation_rows(phase)
    parts = [
        jax.tree.map(lambda x, counts=rows >= 0: x[:, counts], out.scores)
        for _, out, rows in roll_outs(team, links, data, rounds=phase.rounds, batch_size=size)
    ]
    scores = jax.tree.map(lambda *of_part: np.concatenate(of_part, axis=1).mean(1), *parts)
    loss = float(scores[team.system.topology.answerer].loss[-1])
    by_role = {
        f"text_{name}": {role: getattr(score, name) for role, score in scores.items()}
        for name in ("loss", "exact_match")
    }
    return {"loss": loss, **as_values(by_role)}


def validation_rows(phase: PhaseConfig) -> int:
    """Items per validation batch: as many as in a part of a step's batch, which fits."""
    return phase.batch_size // phase.accumulation
