"""Schedules by hand: who writes when, from what, and the longest chain of steps."""

import numpy as np
import pytest

from rmas_jax.prompts import FIRST, LATER
from rmas_jax.rounds.budget import steps_before_answer
from rmas_jax.rounds.schedules import (
    SCHEDULES,
    edges_of,
    longest_chain,
    mixture_of_agents,
    recursion,
    self_refinement,
    textgrad,
)
from rmas_jax.topology import Topology, load_topology

ROW, MIXTURE = load_topology("sequential"), load_topology("mixture")
ALONE = Topology("alone", ("solver",), (("solver", "solver"),), "solver")


def read_texts(stages):
    """Per stage: round, role, and the (round, role) of all that it reads."""
    wrote = [(stage.round, stage.role) for stage in stages]
    return [
        (*wrote[i], {sender: wrote[at] for sender, at in stage.reads.items()})
        for i, stage in enumerate(stages)
    ]


def test_two_rounds_of_recursion_in_a_row():
    assert read_texts(recursion(ROW, 2)) == [
        (0, "planner", {}),
        (0, "critic", {"planner": (0, "planner")}),
        (0, "solver", {"critic": (0, "critic")}),
        (1, "planner", {"solver": (0, "solver")}),
        (1, "critic", {"planner": (1, "planner")}),
        (1, "solver", {"critic": (1, "critic")}),
    ]
    assert [s.kind for s in recursion(ROW, 2)] == [FIRST] * 3 + [LATER] * 3


def test_layers_of_a_mixture_of_agents_do_not_read_themselves():
    layer = {role: (0, role) for role in ROW.order}
    assert read_texts(mixture_of_agents(ROW, 3)) == [
        *((0, role, {}) for role in ROW.order),
        *((1, role, layer) for role in ROW.order),
        (2, "solver", {role: (1, role) for role in ROW.order}),
    ]
    assert read_texts(mixture_of_agents(ROW, 1)) == [(0, "solver", {})]


def test_textual_gradients_are_of_the_latest_draft():
    draft, revised = (0, "solver"), (1, "solver")
    assert read_texts(textgrad(ROW, 3)) == [
        (0, "solver", {}),
        (1, "planner", {"solver": draft}),
        (1, "critic", {"solver": draft}),
        (1, "solver", {"solver": draft, "planner": (1, "planner"), "critic": (1, "critic")}),
        (2, "planner", {"solver": revised}),
        (2, "critic", {"solver": revised}),
        (2, "solver", {"solver": revised, "planner": (2, "planner"), "critic": (2, "critic")}),
    ]


def test_self_refinement_is_recursion_of_an_agent_with_itself():
    assert self_refinement(ROW, 3) == recursion(ALONE, 3)


@pytest.mark.parametrize("topology", [ROW, MIXTURE, ALONE])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_answerer_ends_after_what_it_reads(name, topology):
    for rounds in (1, 2, 3):
        stages = SCHEDULES[name](topology, rounds)
        assert (stages[-1].role, stages[-1].round) == (topology.answerer, rounds - 1)
        for i, stage in enumerate(stages):
            assert all(at < i and stages[at].role == who for who, at in stage.reads.items())
    read = {(who, s.role) for s in SCHEDULES[name](topology, 5) for who in s.reads}
    assert read == set(edges_of(SCHEDULES[name], topology))


def test_agents_who_do_not_wait_for_each_other_count_as_the_longest_of_them():
    # math, code and science side by side, then the summarizer; items by column
    tokens = [[3, 9], [5, 1], [4, 2], [7, 7], [1, 1], [1, 1], [6, 2], [0, 0]]
    steps = [np.array(row) for row in tokens]
    assert longest_chain(recursion(MIXTURE, 2), steps).tolist() == [5 + 7 + 6, 9 + 7 + 2]
    # three layers of three: the longest of each
    steps = [1, 2, 9, 4, 3, 2, 0]
    assert longest_chain(mixture_of_agents(ROW, 3), steps) == 9 + 4
    # draft, two feedbacks, answer
    assert longest_chain(textgrad(ROW, 2), [5, 2, 3, 4]) == 5 + 3 + 4
    # a row: all of them
    steps = [1, 2, 3, 4, 5, 6]
    assert longest_chain(recursion(ROW, 2), steps) == sum(steps)


@pytest.mark.parametrize(
    ("topology", "rounds", "stages"),
    [(ROW, 1, 2), (ROW, 3, 8), (MIXTURE, 1, 1), (MIXTURE, 3, 5), (ALONE, 1, 0), (ALONE, 4, 3)],
)
def test_latent_steps_before_the_answer(topology, rounds, stages):
    assert steps_before_answer(topology, rounds, 16) == 16 * stages


def test_a_text_that_nobody_needs_is_on_no_chain():
    """The critic feeds the next round only, and there is none after the last."""
    edges = (("critic", "planner"), ("planner", "solver"))
    topology = Topology("late", ("planner", "critic", "solver"), edges, "solver")
    assert longest_chain(recursion(topology, 1), [2, 50, 0]) == 2
    assert longest_chain(recursion(topology, 2), [2, 50, 3, 4, 50, 0]) == 50 + 4
