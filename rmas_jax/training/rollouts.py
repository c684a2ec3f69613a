"""A split run through the rounds without gradients: for validation and for later inner passes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rmas_jax.assembly import Team
from rmas_jax.channels import latent_channel
from rmas_jax.recursion import Rounds, run_rounds
from rmas_jax.sharding import put_batch, to_host
from rmas_jax.topology import System
from rmas_jax.training.batches import TrainingData

BATCH_SIZE = 256  # of reading without gradients


@functools.partial(jax.jit, static_argnames=("system", "rounds"))
def _roll_out(
    system: System, agents: Any, links: Any, batch: TrainingData, *, rounds: int
) -> Rounds:
    """The rounds on the system's own latents, without gradients; one program per batch size."""
    channel = latent_channel(system, links)
    return run_rounds(system, agents, channel, batch.prompts, rounds=rounds, targets=batch.targets)


def roll_outs(
    team: Team, links: Any, data: TrainingData, *, rounds: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[TrainingData, Rounds, np.ndarray]]:
    """Yields batches and what the rounds make of them, both on the host, and which rows [B] count.

    The last batch wraps; what it repeats does not count.
    """
    batch_size = min(batch_size, len(data))
    for start in range(0, len(data), batch_size):
        rows = np.arange(start, start + batch_size)
        batch = data.rows(rows % len(data))
        on_device = put_batch(batch, team.mesh)
        out = _roll_out(team.system, team.agents, links, on_device, rounds=rounds)
        yield batch, to_host(out), rows < len(data)
