"""Rounds that continue from fewer are those of `recursion.listen`, from the start."""

import jax
import numpy as np
import pytest
from teams import QUESTIONS, broken, build_team, with_agents

from rmas_jax.rounds import recursion
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.progress import advance, no_progress
from rmas_jax.rounds.stages import begin

ROUNDS = 3


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"), 2)


@jax.jit
def start(agents, prompts, system):
    return no_progress(system, agents, prompts)


@jax.jit
def go_on(agents, links, prompts, system, before, rounds):
    stages = begin(system, agents, LatentChannel(system, links), prompts)
    return advance(stages, before, rounds=rounds)


@jax.jit
def from_the_start(agents, links, prompts, system, rounds):
    channel = LatentChannel(system, links)
    return recursion.listen(system, agents, channel, prompts, rounds=rounds)


def arguments(team, links):
    return team.agents, links, team.encode(QUESTIONS), team.system


def test_rounds_split_anywhere_are_bit_equal_and_those_from_the_start(team_and_links):
    given = arguments(*team_and_links)
    nothing = start(given[0], *given[2:])
    compiled = go_on._cache_size()
    found = {(rounds,): go_on(*given, nothing, rounds) for rounds in range(1, ROUNDS + 1)}
    for split in ((1, 2), (1, 3), (2, 3)):
        found[split] = go_on(*given, found[split[:1]], split[1])
    one_by_one = go_on(*given, found[1, 2], 3)
    assert go_on._cache_size() == compiled + 1
    for progress in (found[1, 3], found[2, 3], one_by_one):
        jax.tree.map(np.testing.assert_array_equal, progress, found[(3,)])
    for rounds in range(1, ROUNDS + 1):
        expected = from_the_start(*given, rounds).prompt.received
        np.testing.assert_allclose(found[(rounds,)].received, expected, rtol=1e-5, atol=1e-5)
    # The control: rounds differ.
    assert np.abs(found[(2,)].received - found[(3,)].received).max() > 1e-3


@pytest.mark.parametrize("role", ["planner", "critic", "solver"])
def test_the_first_stage_that_is_not_finite_is_that_from_the_start(team_and_links, role):
    team, links = team_and_links
    member = team.members[role]
    team = with_agents(team, {role: broken(member.agent)})
    given = arguments(team, links)
    nothing = start(given[0], *given[2:])
    first = go_on(*given, nothing, 1)
    found = {1: first, 2: go_on(*given, first, 2)}
    for rounds, progress in found.items():
        expected = from_the_start(*given, rounds).fault
        np.testing.assert_array_equal(progress.fault, expected)
    place = team.system.topology.order.index(role)
    assert set(np.asarray(found[2].fault).tolist()) == {place}
    assert (np.asarray(first.fault) < 0).all() == (role == "solver")
