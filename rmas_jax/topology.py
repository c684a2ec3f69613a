"""Who works with whom: roles, their order, edges and the answerer, as data."""

from __future__ import annotations

import dataclasses


class TopologyError(ValueError):
    """A topology that cannot be run."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A directed loop of agents.

    An edge to a later role of `order` is crossed within a round; an edge to the same or an earlier
    role carries feedback into the next round.
    """

    name: str
    order: tuple[str, ...]  # roles in the order of their stages
    edges: tuple[tuple[str, str], ...]  # (sender, receiver)
    answerer: str  # the role that writes the answer; the last stage

    def __post_init__(self):
        if len(set(self.order)) != len(self.order):
            raise TopologyError(f"{self.name}: a role stands twice in {self.order}")
        for edge in self.edges:
            if unknown := set(edge) - set(self.order):
                raise TopologyError(
                    f"{self.name}: edge {edge} names {sorted(unknown)}; roles are {self.order}"
                )
        if self.answerer != self.order[-1]:
            raise TopologyError(
                f"{self.name}: answerer {self.answerer!r} must be the last of {self.order}"
            )
        if not any(receiver == self.answerer for _, receiver in self.edges):
            raise TopologyError(f"{self.name}: nothing reaches the answerer {self.answerer!r}")

    def senders(self, role: str) -> tuple[str, ...]:
        """Roles that send to `role`."""
        return tuple(sender for sender, receiver in self.edges if receiver == role)

    @property
    def feedback_edges(self) -> tuple[tuple[str, str], ...]:
        """Edges that lead into the next round."""
        place = self.order.index
        return tuple(edge for edge in self.edges if place(edge[0]) >= place(edge[1]))


def edge_name(edge: tuple[str, str]) -> str:
    """How an edge and its outer link are called: "planner->critic"."""
    return "->".join(edge)


SEQUENTIAL = Topology(
    name="sequential",
    order=("planner", "critic", "solver"),
    edges=(("planner", "critic"), ("critic", "solver"), ("solver", "planner")),
    answerer="solver",
)
TOPOLOGIES = {topology.name: topology for topology in (SEQUENTIAL,)}
