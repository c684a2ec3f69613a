"""Divergence: training whose numbers are not finite, or too large."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.config import PhaseConfig
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.links import Links
from rmas_jax.team import Team


class DivergedError(RuntimeError):
    """A loss, gradient or link is not finite, or a loss is too large; the message names it."""


@contextlib.contextmanager
def as_divergence(work: str) -> Iterator[None]:
    """Turns an agent's NonFiniteError into a DivergedError of `work`."""
    try:
        yield
    except NonFiniteError as error:
        raise DivergedError(f"{work}: {error}") from None


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def broken_links(links: Links) -> list[str]:
    """Names of the links that are not finite, such as "outer link a->b"."""
    return [
        f"{part} link {name}"
        for part, by_name in vars(jax.device_get(_finite(links))).items()
        for name, finite in by_name.items()
        if not np.all(jax.tree.leaves(finite))
    ]


def largest_loss(team: Team, phase: PhaseConfig) -> float:
    """Twice the loss of uniform guessing, over all texts in the loss of a phase."""
    guessing = {role: math.log(agent.config.vocab_size) for role, agent in team.agents.items()}
    of_texts = phase.role_text_weight * sum(guessing.values()) / len(guessing)
    return 2 * (guessing[team.system.topology.answerer] + of_texts)
