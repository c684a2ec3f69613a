"""Rounds one stage at a time are the fused rounds; what crosses edges can be looked up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, LATENT_STEPS, QUESTIONS, build_pattern, build_tiny_system

from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.prompts import FIRST, LATER
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, run_rounds
from rmas_jax.rounds.trace import trace_rounds
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
