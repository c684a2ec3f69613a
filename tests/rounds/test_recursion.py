"""Rounds as a scan, against their definition: one stage and one step after another, uncached."""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from systems import (
    CONFIGS,
    LATENT_STEPS,
    QUESTIONS,
    build_tiny_system,
    naive_text,
    random_link,
    run_naively,
)

from rmas_jax.links import OUTER, LinkConfig
from rmas_jax.prompts import RolePrompt
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds, solve
from rmas_jax.topology import Topology, edge_name

ROUNDS = 3
MAX_TOKENS = 4
NEVER = (1000,)  # no token of the vocabulary ends a text
TOLERANCE = 1e-4
EDGES = ("planner->critic", "critic->solver", "solver->planner")


@functools.partial(jax.jit, static_argnames="rounds")
def run(system, agents, links, prompts, *, rounds):
    channel = LatentChannel(system, links)
    return run_rounds(system, agents, channel, prompts, Unroll(rounds=rounds))


@functools.partial(jax.jit, static_argnames="rounds")
def solve_jitted(system, agents, links, prompts, *, rounds):
    channel = LatentChannel(system, links)
    return solve(
        system, agents, channel, prompts, rounds=rounds, end_tokens=NEVER, max_tokens=MAX_TOKENS
    )


@functools.cache
def naive_rounds(tiny):
    return run_naively(tiny, rounds=ROUNDS)[0]


def assert_close(ours, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


def test_cached_scan_equals_the_plain_definition(tiny_system):
    tiny, prompts = tiny_system, tiny_system.prompts()
    before = jax.tree.map(np.array, tiny.agents)
    out = run(tiny.system, tiny.agents, tiny.links, prompts, rounds=ROUNDS)
    expected = naive_rounds(tiny)
    assert out.received.shape == (ROUNDS, len(QUESTIONS), LATENT_STEPS, CONFIGS["solver"].width)
    assert_close(out.received, expected)
    # Rounds, items and thoughts differ by far more than the tolerance.
    for axis in range(3):
        assert np.abs(np.diff(expected, axis=axis)).max(axis=(1, 2, 3)).min() > 0.05
    jax.tree.map(np.testing.assert_array_equal, tiny.agents, before)  # agents are frozen
    flat = expected.reshape(ROUNDS, len(QUESTIONS), -1)
    moved = np.linalg.norm(np.diff(flat, axis=0), axis=-1) / np.linalg.norm(flat[1:], axis=-1)
    assert_close(out.change[0], np.ones(len(QUESTIONS)))
    assert_close(out.change[1:], moved, 1e-3)
    assert out.scores == {} and out.thoughts == {}


def test_one_item_in_one_round_equals_the_first_round_of_many_items(tiny_system):
    tiny = tiny_system
    alone = tiny.prompts(QUESTIONS[:1])  # the shortest: beside the others it is mostly pads
    out = run(tiny.system, tiny.agents, tiny.links, alone, rounds=1)
    assert_close(out.received[0, 0], naive_rounds(tiny)[0, 0])


def test_solve_speaks_after_the_last_round(tiny_system):
    tiny = tiny_system
    state = solve_jitted(tiny.system, tiny.agents, tiny.links, tiny.prompts(), rounds=2)
    bodies = run_naively(tiny, rounds=2)[2]
    expected = naive_text(tiny.agents["solver"], bodies, MAX_TOKENS)
    np.testing.assert_array_equal(state.tokens, expected)
    assert len(np.unique(expected, axis=0)) == len(QUESTIONS)  # items are told apart
    # Alone, the third question has other pads than beside the longer second one.
    alone = tiny.prompts(QUESTIONS[2:])
    assert alone["solver"].prefix_ids.shape[1] < tiny.prompts()["solver"].prefix_ids.shape[1]
    state = solve_jitted(tiny.system, tiny.agents, tiny.links, alone, rounds=2)
    np.testing.assert_array_equal(state.tokens[0], expected[2])


def test_an_item_that_has_settled_goes_through_no_further_round(tiny_system):
    tiny, prompts = tiny_system, tiny_system.prompts()
    out = run(tiny.system, tiny.agents, tiny.links, prompts, rounds=ROUNDS)
    second = np.sort(np.asarray(out.change[1]))
    tolerance = float(second[:2].mean())  # one item has settled after two rounds, two have not

    @jax.jit
    def listened(tolerance, rounds):
        channel = LatentChannel(tiny.system, tiny.links)
        how = {"rounds": rounds, "tolerance": tolerance}
        out = listen(tiny.system, tiny.agents, channel, prompts, **how)
        return out.prompt.received, out.took

    received, took = listened(tolerance, ROUNDS)
    settled = np.asarray(out.change[1]) < tolerance
    np.testing.assert_array_equal(took, np.where(settled, 2, ROUNDS))
    expected = np.where(settled[:, None, None], out.received[1], out.received[2])
    assert_close(received, expected)
    assert np.abs(out.received[2] - out.received[1]).max(axis=(1, 2)).min() > 0.05
    for rounds in (1, 2, 3):  # as data: no further compilation
        received, took = listened(0.0, rounds)
        assert_close(received, out.received[rounds - 1])
        assert took.tolist() == [rounds] * len(QUESTIONS)
    assert listened._cache_size() == 1


def test_without_latent_steps_nothing_is_passed():
    tiny = build_tiny_system(latent_steps=0)
    prompts = tiny.prompts()
    out = jax.eval_shape(
        functools.partial(run, rounds=2), tiny.system, tiny.agents, tiny.links, prompts
    )
    assert out.received.shape == (2, len(QUESTIONS), 0, CONFIGS["solver"].width)
    state = solve_jitted(tiny.system, tiny.agents, tiny.links, prompts, rounds=2)
    nothing = {"critic": np.zeros((0, CONFIGS["solver"].width), np.float32)}
    bodies = [tiny.body("solver", q, later=True, inbox=nothing) for q in QUESTIONS]
    expected = naive_text(tiny.agents["solver"], bodies, MAX_TOKENS)
    np.testing.assert_array_equal(state.tokens, expected)


@pytest.fixture(scope="module")
def fan_in():
    """Planner and critic both send to the solver, whose slots are not in the order of the edges.

    Nobody sends to the planner and nothing is fed back; thoughts go out without the inner link.
    """
    tiny = build_tiny_system()
    edges = (("critic", "solver"), ("planner", "critic"), ("planner", "solver"))
    topology = Topology("fan-in", ("planner", "critic", "solver"), edges, "solver")
    link = LinkConfig(OUTER, "linear", CONFIGS["planner"].width, CONFIGS["solver"].width)
    outer = {
        edge_name(edge): tiny.system.outer.get(edge_name(edge), link) for edge in topology.edges
    }
    links = tiny.links.outer | {"planner->solver": random_link(link, 9)}
    solver = RolePrompt("", "{question} {planner} and {critic}", "{planner} {critic} {question} ?")
    return dataclasses.replace(
        tiny,
        system=tiny.system.replace(
            topology=topology, outer=FrozenDict(outer), sent_vectors="outer_of_hidden"
        ),
        links=tiny.links.replace(outer={name: links[name] for name in outer}),
        role_prompts=tiny.role_prompts
        | {"planner": RolePrompt("", "{question} plan", "{question} once more"), "solver": solver},
    )


def test_slots_in_any_order_and_roles_without_senders(fan_in):
    """Another topology, with the other sent vectors."""
    tiny = fan_in
    out = run(tiny.system, tiny.agents, tiny.links, tiny.prompts(), rounds=2)
    expected = run_naively(tiny, rounds=2)[0]
    assert out.received.shape == (2, len(QUESTIONS), 2 * LATENT_STEPS, CONFIGS["solver"].width)
    assert_close(out.received, expected)
    planner, critic = np.split(expected, 2, axis=2)
    assert np.abs(planner - critic).max() > 0.1  # a swap would show


@pytest.mark.parametrize("rounds", [1, 4])
def test_a_round_is_traced_once_however_many_there_are(tiny_system, rounds):
    tiny, sends, feeds = tiny_system, [], []

    class CountingChannel(LatentChannel):
        def send(self, edge, thoughts):
            sends.append(edge_name(edge))
            return super().send(edge, thoughts)

        def feed(self, role, hidden):
            feeds.append(role)
            return super().feed(role, hidden)

    def program(agents, links, prompts):
        channel = CountingChannel(tiny.system.replace(sent_vectors="outer_of_hidden"), links)
        return run_rounds(tiny.system, agents, channel, prompts, Unroll(rounds=rounds))

    jax.eval_shape(program, tiny.agents, tiny.links, tiny.prompts())
    assert sorted(sends) == sorted(EDGES)
    assert sorted(feeds) == sorted(CONFIGS)  # one latent step each, scanned


def test_agents_of_different_precision_work_together(tiny_system):
    tiny = tiny_system
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tiny.agents["planner"])
    agents = tiny.agents | {"planner": half}
    out = jax.eval_shape(
        functools.partial(run, rounds=2), tiny.system, agents, tiny.links, tiny.prompts()
    )
    assert out.received.dtype == jnp.float32
    agents = tiny.agents | {
        "solver": jax.tree.map(lambda p: p.astype(jnp.bfloat16), tiny.agents["solver"])
    }
    out = jax.eval_shape(
        functools.partial(run, rounds=2), tiny.system, agents, tiny.links, tiny.prompts()
    )
    assert out.received.dtype == jnp.bfloat16


def test_link_parameters_can_be_mapped(tiny_system):
    tiny, prompts = tiny_system, tiny_system.prompts()
    other = jax.tree.map(lambda p: 0.7 * p, tiny.links)
    several = jax.tree.map(lambda *ps: jnp.stack(ps), tiny.links, other)
    mapped = jax.vmap(functools.partial(run, rounds=ROUNDS), (None, None, 0, None))
    received = mapped(tiny.system, tiny.agents, several, prompts).received
    assert_close(received[0], naive_rounds(tiny))
    alone = run(tiny.system, tiny.agents, other, prompts, rounds=ROUNDS).received
    assert_close(received[1], alone)
    assert np.abs(received[0] - received[1]).max() > 0.1


def test_weights_are_arguments_and_not_constants(tiny_system, caplog):
    tiny = tiny_system

    def warnings_of(program, *args):
        caplog.clear()
        limit = jax.config.jax_captured_constants_warn_bytes
        jax.config.update("jax_captured_constants_warn_bytes", 1000)
        try:
            with caplog.at_level(logging.WARNING):
                jax.jit(program).lower(*args)
        except UserWarning as warning:
            return str(warning)
        finally:
            jax.config.update("jax_captured_constants_warn_bytes", limit)
        return caplog.text

    def program(agents, links, prompts):
        channel = LatentChannel(tiny.system, links)
        return run_rounds(tiny.system, agents, channel, prompts, Unroll(rounds=2)).received

    prompts = tiny.prompts()
    assert "captured" not in warnings_of(program, tiny.agents, tiny.links, prompts)
    capturing = functools.partial(program, tiny.agents)
    assert "captured" in warnings_of(capturing, tiny.links, prompts)
