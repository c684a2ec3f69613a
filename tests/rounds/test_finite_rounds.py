"""Agents that yield NaN or infinity: all functions of rounds name the agent, stage and rows, and no
other rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, QUESTIONS, build_tiny_system

from rmas_jax.agents.sweeps import relative_change
from rmas_jax.host.nonfinite import Fault, NonFiniteError, earliest_fault, first_fault
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds, solve
from rmas_jax.rounds.trace import trace_rounds

ROUNDS = 2
ROLES = tuple(CONFIGS)
EVERY_ROW = list(range(len(QUESTIONS)))


@functools.cache
def tiny():
    return build_tiny_system()


@functools.cache
def channel():
    return LatentChannel(tiny().system, tiny().links)


@jax.jit
def scanned(agents):
    return run_rounds(tiny().system, agents, channel(), tiny().prompts(), Unroll(rounds=ROUNDS))


@jax.jit
def looped(agents, rounds):
    return listen(tiny().system, agents, channel(), tiny().prompts(), rounds=rounds)


@jax.jit
def solved(agents, rounds):
    how = {"rounds": rounds, "end_tokens": (), "max_tokens": 2}
    return solve(tiny().system, agents, channel(), tiny().prompts(), **how)


def traced(agents, rounds=ROUNDS):
    """The error of `trace_rounds` with these agents, or None."""
    try:
        trace_rounds(tiny().system, agents, channel(), tiny().prompts(), rounds=rounds)
    except NonFiniteError as error:
        return str(error)


def faults(agents):
    """What a scan, a loop and a trace find; they agree."""
    found = first_fault(ROLES, scanned(agents).finite)
    assert earliest_fault(ROLES, looped(agents, ROUNDS).fault) == found
    assert traced(agents) == (found and str(found.error()))
    return found


def changed(agent, **params):
    """The agent with other parameters, by name."""
    return agent.replace(params=agent.params | params)


def with_norm(role, weight, dtype=jnp.float32):
    """Agents of a dtype, with norms in float32; one has this weight in all of its last norm."""
    norms = {name: dict(agent.params["final_norm"]) for name, agent in tiny().agents.items()}
    norms[role]["weight"] = jnp.full_like(norms[role]["weight"], weight)
    cast = jax.tree.map(lambda x: x.astype(dtype), tiny().agents)
    return {name: changed(agent, final_norm=norms[name]) for name, agent in cast.items()}


def with_token(role, token):
    """Agents, one of which has NaN for a token."""
    agent = tiny().agents[role]
    broken = agent.params["embedding"].at[token].set(jnp.nan)
    return tiny().agents | {role: changed(agent, embedding=broken)}


def words_of(role):
    """Token ids that a role reads, by row: in the first round, and later."""
    prompt = tiny().prompts()[role]
    read = []
    for kind in (0, 1):
        bodies = zip(prompt.body_ids[:, kind], prompt.body_valid[:, kind], strict=True)
        prefixes = zip(prompt.prefix_ids, prompt.prefix_valid, strict=True)
        read.append(
            [
                {*ids[valid & (np.array(prompt.slot_index) < 0)].tolist(), *before[real].tolist()}
                for (ids, valid), (before, real) in zip(bodies, prefixes, strict=True)
            ]
        )
    return read


def test_healthy_agents_raise_nothing():
    assert faults(tiny().agents) is None
    out = scanned(tiny().agents)
    assert out.finite.shape == (ROUNDS, len(QUESTIONS), len(ROLES)) and out.finite.all()
    assert solved(tiny().agents, ROUNDS).finite.all()


@pytest.mark.parametrize("role", ROLES)
def test_a_broken_weight_breaks_every_row(role):
    agents = with_norm(role, jnp.nan)
    assert faults(agents) == Fault(role, 0, EVERY_ROW)
    assert not solved(agents, ROUNDS).finite.any()


@pytest.mark.parametrize("role", ROLES)
def test_hidden_states_beyond_float16(role):
    assert faults(with_norm(role, 1e5)) is None  # float32 holds them
    assert faults(with_norm(role, 1.0, jnp.float16)) is None
    assert faults(with_norm(role, 1e5, jnp.float16)) == Fault(role, 0, EVERY_ROW)


@pytest.mark.parametrize("role", ROLES)
def test_hidden_states_whose_squares_float32_does_not_hold(role):
    """A norm divides them by infinity: without a check, what comes out is 0."""
    layers = tiny().agents[role].params["layers"]
    ffn = layers["ffn"] | {"down_kernel": layers["ffn"]["down_kernel"] * 1e25}
    agent = changed(tiny().agents[role], layers=layers | {"ffn": ffn})
    assert faults(tiny().agents | {role: agent}) == Fault(role, 0, EVERY_ROW)


def test_a_link_whose_squares_float32_does_not_hold():
    links = tiny().links
    large = jax.tree.map(lambda x: x * 1e25, links.inner["planner"])
    links = links.replace(inner=links.inner | {"planner": large})
    channel = LatentChannel(tiny().system, links)
    with pytest.raises(NonFiniteError, match="agent planner, round 1: latents"):
        trace_rounds(tiny().system, tiny().agents, channel, tiny().prompts(), rounds=ROUNDS)


def test_a_token_breaks_the_row_that_holds_it_alone():
    first, _ = words_of("planner")
    (row,) = (i for i in EVERY_ROW if len(first[i]) == max(map(len, first)))
    token = min(first[row] - set().union(*(first[i] for i in EVERY_ROW if i != row)))
    agents = with_token("planner", token)
    assert faults(agents) == Fault("planner", 0, [row])
    others = [i for i in EVERY_ROW if i != row]
    healthy = scanned(tiny().agents)
    np.testing.assert_array_equal(scanned(agents).received[:, others], healthy.received[:, others])
    state, expected = solved(agents, ROUNDS), solved(tiny().agents, ROUNDS)
    np.testing.assert_array_equal(state.finite, np.arange(len(QUESTIONS)) != row)
    np.testing.assert_array_equal(state.tokens[others,], expected.tokens[others,])


def test_a_token_of_later_rounds_breaks_the_second():
    first, later = words_of("planner")
    token = min(later[0].intersection(*later) - set().union(*first))
    assert faults(with_token("planner", token)) == Fault("planner", 1, EVERY_ROW)


def test_an_answerer_that_never_thinks_is_found_by_its_logits():
    agents = with_norm("solver", jnp.nan)
    assert earliest_fault(ROLES, looped(agents, 1).fault) is None and traced(agents, 1) is None
    assert not solved(agents, 1).finite.any()


def test_padding_may_hold_anything():
    """Pads are token 0, which the planner never reads."""
    assert not any(0 in words for kind in words_of("planner") for words in kind)
    assert not np.all(tiny().prompts()["planner"].prefix_valid)
    agents = with_token("planner", 0)
    assert faults(agents) is None
    np.testing.assert_array_equal(scanned(agents).received, scanned(tiny().agents).received)


def test_the_change_of_large_half_precision_vectors_and_of_none():
    rng = np.random.default_rng(0)
    before, after = (300 * rng.normal(size=(2, 4, 64)).astype(np.float16) for _ in range(2))
    exact = np.linalg.norm(np.float64(after) - before, axis=(1, 2))
    exact /= np.linalg.norm(np.float64(after), axis=(1, 2))
    np.testing.assert_allclose(relative_change(before, after), exact, rtol=1e-5)
    zeros = np.zeros((1, 4, 64), np.float32)
    assert relative_change(zeros, zeros) == 0 and relative_change(zeros, zeros + 1) == 1
