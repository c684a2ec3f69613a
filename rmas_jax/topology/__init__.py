"""Topologies as data, and systems: topologies with links."""

from rmas_jax.topology.files import load_topology, shipped_topologies
from rmas_jax.topology.graph import System, Topology, TopologyError, edge_name

__all__ = [
    "System",
    "Topology",
    "TopologyError",
    "edge_name",
    "load_topology",
    "shipped_topologies",
]
