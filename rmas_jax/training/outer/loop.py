"""The outer loop: a phase trains the links of a system."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rmas_jax.agents.agent import Agent
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.host.nonfinite import first_fault, gradient_fault
from rmas_jax.links import Links
from rmas_jax.team import Team
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import EncodedItems
from rmas_jax.training.outer.step import outer_step, start_phase
from rmas_jax.training.outer.validation import validate
from rmas_jax.training.phases.loop import run_steps
from rmas_jax.training.phases.step import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainableLinks:
    """The links of a system, as a `Trainable`."""

    team: Team
    config: PhaseConfig
    initial: Links

    loop = "outer"

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        return self.team.mesh

    @property
    def agents(self) -> Mapping[str, Agent]:
        return self.team.agents

    @property
    def step(self) -> Callable[..., tuple[TrainState, Any]]:
        return functools.partial(outer_step, self.team.system, self.config)

    @property
    def largest_loss(self) -> float:
        """Twice the loss of uniform guessing, over all texts in the loss of the phase."""
        guessing = {role: math.log(x.config.vocab_size) for role, x in self.agents.items()}
        of_texts = self.config.role_text_weight * sum(guessing.values()) / len(guessing)
        return 2 * (guessing[self.team.system.topology.answerer] + of_texts)

    def start(self, params: Links) -> TrainState:
        return start_phase(self.config, params)

    def batches(self, data: EncodedItems, *, key: jax.Array) -> Batches:
        batches = phase_batches(self.team, self.config, data, key=key)
        if batches.left_out:
            log.warning(
                "%s: %d items are left out: they have texts of fewer tokens than latent_steps=%d, "
                "from which teacher forcing cannot take its thoughts",
                self.name,
                batches.left_out,
                self.team.system.latent_steps,
            )
        return batches

    def validate(self, params: Links, data: EncodedItems) -> dict[str, Any]:
        return validate(self.team, params, data, self.config)

    def parts(self, params: Links) -> Mapping[str, Any]:
        return {
            f"{kind} link {name}": link
            for kind, by_name in vars(params).items()
            for name, link in by_name.items()
        }

    def first_fault(self, metrics: Mapping[str, Any]) -> str | None:
        """The agent and stage that failed first, in the rounds or in their backward pass."""
        order, edges = self.team.system.topology.order, self.team.system.topology.edges
        if fault := first_fault(order, metrics["faults"][:, None] == 0):  # in all items
            return str(fault.error("latents, loss"))
        lost = gradient_fault(order, edges, metrics["edge_grad_norm"])
        return str(lost) if lost else None


def run_phase(
    team: Team,
    links: Links,
    data: EncodedItems,
    validation: EncodedItems,
    config: OuterConfig,
    phase: PhaseConfig,
    **options: Any,
) -> Links:
    """Runs, or resumes, one phase of the outer loop; returns all links.

    Its curves have losses and gradient norms by role, link, edge and round.

    Args:
      team: the system, its agents and their mesh.
      links: initial links.
      data, validation, config: see `run_steps`.
      phase: the phase.
      **options: of `run_steps`.

    Raises:
      See `run_steps`.
    """
    return run_steps(TrainableLinks(team, phase, links), data, validation, config, **options)


def phase_batches(team: Team, phase: PhaseConfig, data: EncodedItems, *, key: jax.Array) -> Batches:
    """The batches of a phase's steps."""
    return Batches(
        data,
        batch_size=phase.batch_size,
        key=key,
        text_width=team.system.latent_steps,
        needs_texts=phase.latents == "teacher_forced",
        mesh=team.mesh,
    )
