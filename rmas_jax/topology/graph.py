"""A topology: roles, their order, edges and the answerer; a system: a topology with links."""

from __future__ import annotations

import collections
import dataclasses

from flax import struct
from flax.core import FrozenDict

from rmas_jax.config import SweepConfig
from rmas_jax.host.errors import InputError
from rmas_jax.links import LinkConfig

MAX_ROLES = 64  # each is a language model
MAX_EDGES = MAX_ROLES**2


class TopologyError(InputError):
    """A topology that cannot be run."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A directed loop of agents.

    An edge to a later role of `order` carries vectors within a round; an edge to the same or an
    earlier role carries feedback into the next round.
    """

    name: str
    order: tuple[str, ...]  # roles in the order of their stages
    edges: tuple[tuple[str, str], ...]  # (sender, receiver)
    answerer: str  # the role that writes the answer; the last in order

    def __post_init__(self) -> None:
        for part, found, most in (
            ("roles", self.order, MAX_ROLES),
            ("edges", self.edges, MAX_EDGES),
        ):
            if len(found) > most:
                raise TopologyError(f"{self.name}: {part} must be at most {most}, got {len(found)}")
        if not self.order:
            raise TopologyError(f"{self.name}: order must have at least one role, got none")
        if len(set(self.order)) != len(self.order):
            raise TopologyError(f"{self.name}: roles must be distinct, got {self.order}")
        for edge in self.edges:
            if unknown := set(edge) - set(self.order):
                raise TopologyError(
                    f"{self.name}: edge {edge} must be between roles of {self.order}, got "
                    f"{sorted(unknown)}"
                )
        if self.answerer != self.order[-1]:
            raise TopologyError(
                f"{self.name}: answerer must be the last of {self.order}, got {self.answerer!r}"
            )
        if repeated := {
            edge for edge, count in collections.Counter(self.edges).items() if count > 1
        }:
            raise TopologyError(
                f"{self.name}: edges must be distinct, got twice {sorted(repeated)}"
            )
        if not any(receiver == self.answerer for _, receiver in self.edges):
            raise TopologyError(
                f"{self.name}: edges must lead to the answerer {self.answerer!r}, got none"
            )
        connected = {self.answerer}
        for _ in self.order:
            connected |= {sender for sender, receiver in self.edges if receiver in connected}
        if unconnected := [role for role in self.order if role not in connected]:
            raise TopologyError(
                f"{self.name}: edges must lead from every role to the answerer {self.answerer!r}, "
                f"got none from {unconnected}"
            )

    def senders(self, role: str) -> tuple[str, ...]:
        """Roles that send to `role`."""
        return tuple(sender for sender, receiver in self.edges if receiver == role)

    @property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Roles by level: a role's senders within a round are of lower levels."""
        depth: dict[str, int] = {}
        for role in self.order:
            depth[role] = 1 + max(
                (depth.get(sender, -1) for sender in self.senders(role)), default=-1
            )
        count = 1 + max(depth.values())
        return tuple(
            tuple(role for role in self.order if depth[role] == level) for level in range(count)
        )

    @property
    def feedback_edges(self) -> tuple[tuple[str, str], ...]:
        """Edges into the next round."""
        place = self.order.index
        return tuple(edge for edge in self.edges if place(edge[0]) >= place(edge[1]))


def edge_name(edge: tuple[str, str]) -> str:
    """Name of an edge and its outer link: "planner->critic"."""
    return "->".join(edge)


class System(struct.PyTreeNode):
    """A topology with link configurations and its way of thinking: all static and hashable."""

    topology: Topology = struct.field(pytree_node=False)
    inner: FrozenDict[str, LinkConfig] = struct.field(pytree_node=False)  # by role
    outer: FrozenDict[str, LinkConfig] = struct.field(pytree_node=False)  # by edge name
    latent_steps: int = struct.field(pytree_node=False)  # M
    sent_vectors: str = struct.field(pytree_node=False, default="outer_of_inner")
    # Of parallel thinking; None: one thought after another.
    sweeps: SweepConfig | None = struct.field(pytree_node=False, default=None)

    def width(self, role: str) -> int:
        """D of a role's agent."""
        return self.inner[role].in_width
