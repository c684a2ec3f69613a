"""Validation of the outer loop: losses and exact matches on held-out items, without gradients."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rmas_jax.config import PhaseConfig
from rmas_jax.team import Team
from rmas_jax.training.curves import as_values
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.rollouts import roll_outs


def validate(team: Team, links: Any, data: TrainingData, phase: PhaseConfig) -> dict[str, Any]:
    """Values for a row of the curves.

    Returns:
      "loss", of the answerer's text in the last round; "text_loss/ROLE" and
      "text_exact_match/ROLE", lists of R means over the items.

    Raises:
      NonFiniteError: an agent's numbers are NaN or infinite.
    """
    size = validation_rows(phase)
    parts = [
        jax.tree.map(lambda x, counts=rows >= 0: x[:, counts], (out.losses, out.exact_match))
        for _, out, rows in roll_outs(team, links, data, rounds=phase.rounds, batch_size=size)
    ]
    losses, exact_match = jax.tree.map(
        lambda *of_part: np.concatenate(of_part, axis=1).mean(1), *parts
    )
    loss = float(losses[team.system.topology.answerer][-1])
    return {"loss": loss, **as_values({"text_loss": losses, "text_exact_match": exact_match})}


def validation_rows(phase: PhaseConfig) -> int:
    """Items that are validated at once: as many as a step holds at once, which is known to fit."""
    return phase.batch_size // phase.accumulation
