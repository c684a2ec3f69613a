"""Rounds one stage at a time are the fused rounds; what crosses edges can be looked up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, LATENT_STEPS, QUESTIONS, build_pattern, build_tiny_system

from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.host.generators import result_of
from rmas_jax.host.nonfinite import Fault
from rmas_jax.prompts import FIRST, LATER
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds
from rmas_jax.rounds.trace import trace_rounds, traced_stages
from rmas_jax.topology import edge_name

ROUNDS = 3


@functools.cache
def sequential(tolerance=0.0):
    return traced(build_tiny_system(), rounds=ROUNDS, tolerance=tolerance)


def traced(tiny, **how):
    channel = LatentChannel(tiny.system, tiny.links)
    return trace_rounds(tiny.system, tiny.agents, channel, tiny.prompts(), **how)


@functools.cache
def fused():
    tiny = build_tiny_system()

    @jax.jit
    def run(agents, links, prompts):
        channel = LatentChannel(tiny.system, links)
        return run_rounds(tiny.system, agents, channel, prompts, Unroll(rounds=ROUNDS))

    return jax.device_get(run(tiny.agents, tiny.links, tiny.prompts()))


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_stages_are_those_of_the_fused_rounds():
    found = sequential()
    order = ["planner", "critic", "solver"] * ROUNDS
    assert [stage.role for stage in found.stages] == order[:-1]  # then the solver answers
    assert [stage.round for stage in found.stages] == [0, 0, 0, 1, 1, 1, 2, 2]
    reached = [s.sent["critic->solver"] for s in found.stages if s.role == "critic"]
    close(np.stack(reached), fused().received)
    close(np.stack(found.change), fused().change)
    close(found.prompt.received, fused().received[-1])
    np.testing.assert_array_equal(
        found.prompt.ids, build_tiny_system().prompts()["solver"].body_ids[:, LATER]
    )
    assert all(stage.seconds > 0 for stage in found.stages)
    assert not any(stage.compiled for stage in found.stages if stage.round)


def test_it_stops_where_all_items_have_settled():
    second = fused().change[1]
    some = float(np.sort(second)[:2].mean())
    assert len(sequential(tolerance=some).change) == 3  # one item has settled, two have not
    found = sequential(tolerance=float(second.max()) + 1e-3)
    assert len(found.change) == 2
    close(found.prompt.received, fused().received[1])


def staged(agents=None, **how):
    tiny = build_tiny_system()
    channel = LatentChannel(tiny.system, tiny.links)
    given = tiny.system, agents or tiny.agents, channel, tiny.prompts()
    trace = result_of(traced_stages(*given, rounds=ROUNDS, **how))
    return trace, jax.device_get(listen(*given, rounds=ROUNDS, **how))


def test_each_item_stops_as_in_the_fused_rounds():
    second = fused().change[1]
    for tolerance in (
        float(np.sort(second)[:2].mean()),  # one item has settled, two have not
        np.array([np.inf, 0.0, 0.0], np.float32),
        np.array([0.0, np.inf, np.inf], np.float32),
    ):
        found, expected = staged(tolerance=tolerance)
        settled = second < tolerance
        np.testing.assert_array_equal(found.took, np.where(settled, 2, ROUNDS))
        np.testing.assert_array_equal(found.took, expected.took)
        close(found.prompt.received, expected.prompt.received)
        for stage in found.stages:
            has_settled = stage.round == 2 or (stage.round, stage.role) == (1, "solver")
            np.testing.assert_array_equal(stage.is_active, ~(settled & has_settled))


def test_an_item_that_breaks_leaves_the_others_alone():
    tiny = build_tiny_system()
    words = words_of(tiny, "planner")
    row = max(range(3), key=lambda i: len(words[i]))
    rest = [i for i in range(3) if i != row]
    token = min(words[row] - set().union(*(words[i] for i in rest)))
    planner = tiny.agents["planner"]
    embedding = planner.params["embedding"].at[token].set(jnp.nan)
    damaged = planner.replace(params=planner.params | {"embedding": embedding})
    tolerance = np.where(np.arange(3) == row, 0.5, 0.0).astype(np.float32)
    found, expected = staged({**tiny.agents, "planner": damaged}, tolerance=tolerance)
    faults = [stage.fault for stage in found.stages]
    assert faults[0] == Fault("planner", 0, [row]) and all(one.rows == [row] for one in faults)
    np.testing.assert_array_equal(expected.fault >= 0, np.arange(3) == row)
    assert found.took.tolist() == [ROUNDS] * 3  # a change that is no number settles nothing
    close(found.prompt.received[rest], staged()[0].prompt.received[rest])


def words_of(tiny, role):
    """The tokens that a role reads in the first round, by row."""
    prompt, rows = tiny.prompts()[role], range(len(QUESTIONS))
    ids = np.concatenate([prompt.prefix_ids, prompt.body_ids[:, FIRST]], axis=1)
    valid = np.concatenate([prompt.prefix_valid, prompt.body_valid[:, FIRST]], axis=1)
    valid[:, prompt.prefix_ids.shape[1] :] &= np.array(prompt.slot_index) < 0
    return [{*ids[i, valid[i]].tolist()} for i in rows]


def test_several_edges_and_a_single_round():
    tiny = build_pattern("mixture")
    found = traced(tiny, rounds=1)
    assert [stage.role for stage in found.stages] == ["math", "code", "science"]
    shape = len(QUESTIONS), LATENT_STEPS, tiny.system.width("summarizer")
    for stage in found.stages:
        ((name, vectors),) = stage.sent.items()
        assert (name, vectors.shape) == (edge_name((stage.role, "summarizer")), shape)
    np.testing.assert_array_equal(found.prompt.ids, tiny.prompts()["summarizer"].body_ids[:, FIRST])


def test_no_latents_and_no_rounds():
    tiny = build_tiny_system(latent_steps=0)
    found = traced(tiny, rounds=2)
    assert (found.stages, found.change) == ([], [])
    assert found.prompt.received.shape == (len(QUESTIONS), 0, CONFIGS["solver"].width)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        traced(tiny, rounds=0)


def test_nearest_tokens():
    tiny = build_tiny_system()
    agent = tiny.agents["solver"]  # scales its embeddings
    every = tiny.embed("solver", range(CONFIGS["solver"].vocab_size))
    ids = np.array([[3, 7], [11, 2]])
    vectors = 5 * every[ids] + 0.05 * np.abs(every).mean()
    found, cosine = nearest_tokens(agent, jnp.asarray(vectors), count=3)
    assert found.shape == cosine.shape == (2, 2, 3)
    np.testing.assert_array_equal(found[..., 0], ids)
    unit = every / np.linalg.norm(every, axis=-1, keepdims=True)
    expected = np.sort(vectors @ unit.T / np.linalg.norm(vectors, axis=-1, keepdims=True))
    np.testing.assert_allclose(cosine, expected[..., :-4:-1], atol=1e-5)
    assert np.all(nearest_tokens(agent, jnp.zeros((1, 20)), count=1)[1] == 0)
    embedding = agent.params["embedding"].at[ids.max() + 1].set(jnp.nan)
    broken = agent.replace(params=agent.params | {"embedding": embedding})
    found, again = nearest_tokens(broken, jnp.asarray(vectors), count=1)
    np.testing.assert_array_equal(found[..., 0], ids)
    np.testing.assert_allclose(again, cosine[..., :1], atol=1e-6)
