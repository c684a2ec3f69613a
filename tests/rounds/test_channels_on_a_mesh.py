"""Channels on eight devices: the numbers of one, and no device with the whole vocabulary."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from counted import CONFIG, largest_buffer
from placed import placed
from systems import random_agent

from rmas_jax.partition import POLICIES, Policies
from rmas_jax.rounds.channels import SoftmaxChannel
from rmas_jax.sharding import make_mesh, put_batch

VOCAB, WIDTHS = 512, {"a": 32, "b": 24}
EDGE = ("a", "b")
SIZE = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2}
ALONE = {
    role: random_agent(dataclasses.replace(CONFIG, width=width, vocab_size=VOCAB, **SIZE), seed)
    for seed, (role, width) in enumerate(WIDTHS.items())
}
# Some tokens, which have other ids at the receiver.
SHARED = np.arange(0, VOCAB, 2, dtype=np.int32), np.arange(VOCAB // 2, dtype=np.int32)[::-1]


def vectors(agents, hidden):
    channel = SoftmaxChannel(agents, {"a->b": SHARED})
    return channel.feed("a", hidden), channel.send(EDGE, hidden)


def hidden_states(seed=0):
    return np.random.default_rng(seed).normal(size=(8, 3, WIDTHS["a"])).astype(np.float32)


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_softmax_channel_gives_the_vectors_of_one_device(sizes, policy):
    mesh = make_mesh(*sizes)
    policies = Policies() if policy is None else Policies(*(policy,) * 4)
    agents = {role: placed(agent, mesh, policies) for role, agent in ALONE.items()}
    compiled = jax.jit(vectors).lower(agents, put_batch(hidden_states(), mesh)).compile()
    found = compiled(agents, put_batch(hidden_states(), mesh))
    expected, other = (jax.jit(vectors)(ALONE, hidden_states(seed)) for seed in (0, 1))
    for ours, one, control in zip(found, expected, other, strict=True):
        scale = np.abs(one).max()
        assert np.abs(ours - one).max() < 1e-5 * scale
        assert np.abs(control - one).max() > 1e-1 * scale
    if policy is None:
        table = 4 * VOCAB * min(WIDTHS.values())
        assert largest_buffer(compiled.as_text()) < table
        # The control: a table that is asked for as one.
        whole = jax.jit(lambda agent: agent.embedding_table()).lower(agents["b"]).compile()
        assert largest_buffer(whole.as_text()) >= table
