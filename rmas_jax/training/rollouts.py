"""Rollouts of a split without gradients, for validation and for the inner loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.host.nonfinite import first_fault
from rmas_jax.links import Links
from rmas_jax.planning.executables import ahead_of_time
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Rounds, Unroll, run_rounds
from rmas_jax.rounds.supervision import Supervision
from rmas_jax.sharding import batch_shards, put_batch, to_host
from rmas_jax.team import Team
from rmas_jax.topology import System
from rmas_jax.training.data.batches import length_groups
from rmas_jax.training.data.encoding import EncodedItems, TrainingData


@functools.partial(ahead_of_time, static=("system", "rounds"))
@functools.partial(jax.jit, static_argnames=("system", "rounds"))
def roll_out(
    system: System,
    agents: Mapping[str, Agent],
    links: Links,
    batch: TrainingData,
    *,
    rounds: int,
) -> Rounds:
    """The rounds on the system's own latents, without gradients; one program per batch shape."""
    channel = LatentChannel(system, links)
    supervision = Supervision(batch.targets, keep_thoughts=True)
    return run_rounds(system, agents, channel, batch.prompts, Unroll(rounds=rounds), supervision)


def roll_outs(
    team: Team, links: Links, data: EncodedItems, *, rounds: int, batch_size: int
) -> Iterator[tuple[TrainingData, Rounds, np.ndarray]]:
    """Yields the batches of `even_batches` and their `Rounds`, on the host.

    Raises:
      NonFiniteError: an agent's numbers are NaN or infinite.
    """
    for batch, rows in even_batches(data, batch_size=batch_size, shards=batch_shards(team.mesh)):
        on_device = put_batch(batch, team.mesh)
        out = to_host(roll_out(team.system, team.agents, links, on_device, rounds=rounds))
        finite = out.finite | (rows < 0)[None, :, None]
        if fault := first_fault(team.system.topology.order, finite):
            raise fault.error("latents, loss").inside("latent rounds", rows.tolist())
        yield batch, out, rows


def even_batches(
    data: EncodedItems, *, batch_size: int, shards: int = 1
) -> Iterator[tuple[TrainingData, np.ndarray]]:
    """Every row once, with rows of similar length, padded to the tiled widths of their group.

    Args:
      data: a split.
      batch_size: maximum rows of a batch, rounded up to a multiple of `shards`; the batches of a
        group have the same shape, so that each of a few groups compiles once.
      shards: divides the rows of every batch.

    Yields:
      A batch of B rows, and their numbers [B] in the split: -1 on repeated rows, which fill the
      last batch of a group and do not count.
    """
    limit = shards * math.ceil(batch_size / shards)
    for group in length_groups(data.lengths, min(limit, len(data))):
        widths, count = data.widths(group, is_tiled=True), len(group)
        size = shards * math.ceil(count / math.ceil(count / limit) / shards)
        for start in range(0, count, size):
            members = np.arange(start, start + size)
            rows = np.where(members < count, group[members % count], -1)
            yield data.batch(group[members % count], widths), rows
