"""What a topology must be, and which of its edges feed back."""

from __future__ import annotations

import pytest

from rmas_jax.topology import SEQUENTIAL, TOPOLOGIES, Topology, TopologyError, edge_name


def topology(**changes) -> Topology:
    fields = {"name": "mine", "order": ("a", "b"), "edges": (("a", "b"),), "answerer": "b"}
    return Topology(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": ("a", "b", "a", "b")}, "twice in ('a', 'b', 'a', 'b')"),
        ({"edges": (("a", "b"), ("b", "c"))}, "edge ('b', 'c') names ['c']"),
        ({"answerer": "a"}, "answerer 'a' must be the last of ('a', 'b')"),
        ({"answerer": "x"}, "answerer 'x' must be the last of ('a', 'b')"),
        ({"edges": (("b", "a"),)}, "nothing reaches the answerer 'b'"),
        ({"edges": ()}, "nothing reaches the answerer 'b'"),
    ],
)
def test_a_topology_that_cannot_run_is_named(changes, words):
    with pytest.raises(TopologyError) as error:
        topology(**changes)
    assert str(error.value).startswith("mine: ")
    assert words in str(error.value)


def test_edges_to_the_same_or_an_earlier_stage_feed_back():
    edges = (("a", "b"), ("b", "a"), ("b", "b"), ("a", "c"), ("c", "b"), ("b", "c"))
    mine = topology(order=("a", "b", "c"), edges=edges, answerer="c")
    assert mine.feedback_edges == (("b", "a"), ("b", "b"), ("c", "b"))
    assert topology().feedback_edges == ()


def test_senders_stand_in_the_order_of_the_edges():
    edges = (("b", "c"), ("a", "c"), ("a", "b"))
    mine = topology(order=("a", "b", "c"), edges=edges, answerer="c")
    assert mine.senders("c") == ("b", "a")
    assert mine.senders("a") == ()


def test_the_sequential_loop_feeds_the_solver_back_to_the_planner():
    assert TOPOLOGIES["sequential"] is SEQUENTIAL
    assert SEQUENTIAL.feedback_edges == (("solver", "planner"),)
    assert edge_name(SEQUENTIAL.edges[0]) == "planner->critic"
    assert hash(SEQUENTIAL) == hash(TOPOLOGIES["sequential"])
