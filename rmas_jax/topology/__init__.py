"""Who works with whom: topologies as data, and systems, which are topologies filled in."""

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
