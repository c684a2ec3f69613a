"""Channels by themselves, and in every way to run rounds: ours, and one that a user writes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from systems import CONFIGS, LATENT_STEPS, QUESTIONS

from rmas_jax.links import apply_link
from rmas_jax.rounds.channels import (
    LatentChannel,
    SelectChannel,
    ShuffledChannel,
    SoftmaxChannel,
)
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds, solve
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.topology import edge_name

ROUNDS = 2
NEVER = (1000,)  # no token of the vocabulary ends a text


@struct.dataclass
class ScalingChannel:
    """Vectors times a number, between agents of one width."""

    fed: float
    sent: float

    def feed(self, role, hidden):
        return self.fed * hidden

    def send(self, edge, thoughts):
        return self.sent * thoughts


@struct.dataclass
class NoisyChannel:
    """As a user may write one: latents with noise from a key that it carries."""

    latent: LatentChannel
    key: jax.Array
    scale: jax.Array  # []

    def feed(self, role, hidden):
        return self.latent.feed(role, hidden)

    def send(self, edge, thoughts):
        vectors = self.latent.send(edge, thoughts)
        return vectors + self.scale * jax.random.normal(self.key, vectors.shape)


def assert_close(ours, expected, tolerance=1e-4):
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


@functools.partial(jax.jit, static_argnums=0)
def received(system, agents, channel, prompts):
    return run_rounds(system, agents, channel, prompts, Unroll(rounds=ROUNDS)).received


@pytest.fixture(scope="module")
def shared():
    """Tokens that both ends of every edge have: all vocabularies are alike."""
    ids = jnp.arange(CONFIGS["solver"].vocab_size)
    return dict.fromkeys(("planner->critic", "critic->solver", "solver->planner"), (ids, ids))


def test_sent_vectors_are_those_of_the_switch(tiny_system):
    tiny, edge = tiny_system, ("planner", "critic")
    thoughts = np.random.default_rng(0).normal(size=(2, 3, CONFIGS["planner"].width))
    thoughts = thoughts.astype(np.float32)

    def link(kind, name, x):
        config, params = getattr(tiny.system, kind)[name], getattr(tiny.links, kind)[name]
        return apply_link(config, params, x)

    both = LatentChannel(tiny.system, tiny.links).send(edge, thoughts)
    paper = tiny.system.replace(sent_vectors="outer_of_hidden")
    outer_only = LatentChannel(paper, tiny.links).send(edge, thoughts)
    name = edge_name(edge)
    assert_close(both, link("outer", name, link("inner", "planner", thoughts)), 1e-5)
    assert_close(outer_only, link("outer", name, thoughts), 1e-5)
    assert np.abs(both - outer_only).max() > 0.1


def test_shuffled_channel_gives_the_thoughts_of_the_item_before():
    channel = ShuffledChannel(ScalingChannel(fed=2.0, sent=10.0))
    thoughts = jnp.arange(3.0)[:, None, None] + jnp.zeros((3, 2, 4))
    np.testing.assert_array_equal(channel.send(("a", "b"), thoughts)[:, 0, 0], [20, 0, 10])
    np.testing.assert_array_equal(channel.feed("a", thoughts), 2 * thoughts)  # one's own stay


def test_softmax_channel_passes_expected_embeddings(tiny_system):
    tiny, edge = tiny_system, ("critic", "solver")
    mine, theirs = np.array([3, 8, 20]), np.array([5, 4, 30])
    shared = {edge_name(edge): (mine, theirs)}
    channel = SoftmaxChannel(tiny.agents, shared)
    width = CONFIGS["critic"].width
    hidden = np.random.default_rng(0).normal(size=(2, 3, width)).astype(np.float32)
    logits = hidden @ np.asarray(tiny.agents["critic"].params["unembed_kernel"]).T
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    every = tiny.embed("critic", range(CONFIGS["critic"].vocab_size))
    assert_close(channel.feed("critic", hidden), chance @ every, 1e-5)
    assert_close(channel.send(edge, hidden), chance[..., mine] @ tiny.embed("solver", theirs), 1e-5)


def test_a_selected_channel_is_either_of_its_two(tiny_system, shared):
    """The condition is data: one program, each time with the vectors of one channel."""
    tiny = tiny_system
    channels = LatentChannel(tiny.system, tiny.links), SoftmaxChannel(tiny.agents, shared)

    def of(channel):
        return received(tiny.system, tiny.agents, channel, tiny.prompts())

    first, second = map(of, channels)
    assert np.abs(first - second).max(axis=(2, 3)).min() > 0.1
    programs = received._cache_size()
    assert_close(of(SelectChannel(jnp.asarray(True), *channels)), first)
    assert_close(of(SelectChannel(jnp.asarray(False), *channels)), second)
    assert received._cache_size() == programs + 1


def test_a_channel_of_ones_own_serves_every_way_to_run_rounds(tiny_system):
    """The noise that it adds arrives: the same in all ways, and none of it at scale zero."""
    tiny = tiny_system
    system, agents, prompts = tiny.system, tiny.agents, tiny.prompts()
    latent, key = LatentChannel(system, tiny.links), jax.random.key(0)
    channel = NoisyChannel(latent, key, jnp.asarray(0.5))
    quiet = received(system, agents, channel.replace(scale=jnp.asarray(0.0)), prompts)
    plain, noisy = (received(system, agents, c, prompts) for c in (latent, channel))
    assert_close(quiet, plain)
    # All that reaches the answerer in round 1 comes from two edges; on the last, noise is added.
    assert np.abs(noisy - plain).max(axis=(2, 3)).min() > 0.1

    listened = jax.jit(listen, static_argnums=0)(system, agents, channel, prompts, rounds=ROUNDS)
    assert_close(listened.prompt.received, noisy[-1])
    traced = trace_rounds(system, agents, channel, prompts, rounds=ROUNDS)
    assert_close(traced.prompt.received, noisy[-1])
    reached = [stage.sent["critic->solver"] for stage in traced.stages if stage.role == "critic"]
    assert_close(np.stack(reached), noisy)

    solved = jax.jit(solve, static_argnums=0, static_argnames=("end_tokens", "max_tokens"))
    how = {"rounds": ROUNDS, "end_tokens": NEVER, "max_tokens": 4}
    tokens = [solved(system, agents, c, prompts, **how).tokens for c in (latent, channel)]
    assert tokens[0].shape == (len(QUESTIONS), 4) and np.any(tokens[0] != tokens[1])


def test_gradients_reach_what_a_channel_of_ones_own_carries(tiny_system, float64):
    """The scale of the noise and the links, against central differences."""
    tiny = tiny_system
    agents, links = float64((tiny.agents, tiny.links))
    weights = np.random.default_rng(0).normal(size=(LATENT_STEPS, CONFIGS["solver"].width))

    @jax.jit
    @jax.value_and_grad
    def loss(trained):
        links, scale = trained
        channel = NoisyChannel(LatentChannel(tiny.system, links), jax.random.key(0), scale)
        out = run_rounds(tiny.system, agents, channel, tiny.prompts(), Unroll(rounds=ROUNDS))
        return (out.received[-1] * weights[None]).sum()

    at = (links, jnp.asarray(0.5))
    _, gradient = loss(at)
    rng = np.random.default_rng(1)
    for towards_links in (0.0, 1.0):
        toward = jax.tree.map(lambda x, s=towards_links: s * rng.normal(size=x.shape), links), 1.0
        ahead, behind = (
            loss(jax.tree.map(lambda x, t, s=step: x + s * t, at, toward))[0]
            for step in (1e-6, -1e-6)
        )
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, t: (g * t).sum(), gradient, toward)))
        assert abs(slope) > 1e-2
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-5)


def test_links_pass_through_jit_and_tree_map(tiny_system):
    links = tiny_system.links
    doubled = jax.jit(lambda links: jax.tree.map(lambda x: 2 * x, links))(links)
    assert type(doubled) is type(links) and jax.tree.structure(doubled) == jax.tree.structure(links)
    assert list(doubled.inner) == sorted(CONFIGS) and len(doubled.outer) == 3
    for ours, theirs in zip(*map(jax.tree.leaves, (doubled, links)), strict=True):
        np.testing.assert_array_equal(ours, 2 * theirs)


def test_a_channel_of_the_wrong_width_is_named_with_its_edge(tiny_system):
    tiny = tiny_system
    message = r"ScalingChannel\.send: vectors on planner->critic must be 12 wide, got 16"
    with pytest.raises(ValueError, match=message):
        listen(tiny.system, tiny.agents, ScalingChannel(1.0, 1.0), tiny.prompts(), rounds=1)
