"""Rounds with parallel thinking: the numbers of sequential rounds, in every way to run them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import QUESTIONS, build_tiny_system

from rmas_jax.config import SweepConfig
from rmas_jax.rounds.channels import LatentChannel, SelectChannel, ShuffledChannel
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds
from rmas_jax.rounds.supervision import Supervision, Targets
from rmas_jax.rounds.trace import trace_rounds

ROUNDS, STEPS = 2, 4
EXACT = SweepConfig(window=STEPS)


@pytest.fixture(scope="module")
def tiny():
    return build_tiny_system(latent_steps=STEPS)


def arguments(tiny, sweeps):
    system = tiny.system.replace(sweeps=sweeps)
    # Smaller weights than elsewhere: rounds magnify rounding errors.
    agents = {
        role: agent.replace(params=jax.tree.map(lambda x: 0.5 * x, agent.params))
        for role, agent in tiny.agents.items()
    }
    return system, agents, LatentChannel(system, tiny.links), tiny.prompts()


def listened(tiny, sweeps=None):
    system, *rest = arguments(tiny, sweeps)
    return jax.jit(lambda *rest: listen(system, *rest, rounds=jnp.int32(ROUNDS)))(*rest)


def gradients(tiny, sweeps, unroll):
    """Loss and gradients of the links, with a text of every role."""
    system, agents, _, prompts = arguments(tiny, sweeps)
    ids = np.random.default_rng(0).integers(1, 30, (len(QUESTIONS), ROUNDS, STEPS + 1))
    targets = Targets(ids.astype(np.int32), np.ones(ids.shape, bool))
    supervision = Supervision(dict.fromkeys(system.topology.order, targets))

    def loss(links, is_true):
        latent = LatentChannel(system, links)
        channel = SelectChannel(is_true, latent, ShuffledChannel(latent))  # it has no gradient
        out = run_rounds(system, agents, channel, prompts, unroll, supervision)
        return sum(score.loss.mean() for score in out.scores.values()), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny.links, True)
    return out, {"loss": value, "links": grads}


def close(ours, expected, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_inference_and_its_trace(tiny):
    sequential, parallel = listened(tiny), listened(tiny, EXACT)
    close(parallel.prompt.received, sequential.prompt.received)
    assert sequential.sweeps is None
    # A turn has three sweeps at most; the answerer thinks in the first round alone.
    assert parallel.sweeps.shape == (len(QUESTIONS), 3)
    assert parallel.sweeps.max(0).tolist() == [6, 6, 3]
    traced = trace_rounds(*arguments(tiny, EXACT), rounds=ROUNDS)
    close(traced.prompt.received, sequential.prompt.received)
    of_roles = [sum(s.sweeps for s in traced.stages if s.role == role) for role in tiny.agents]
    np.testing.assert_array_equal(np.stack(of_roles, axis=1), parallel.sweeps)
    # The control: a sweep less.
    other = listened(tiny, SweepConfig(window=STEPS, most=2)).prompt.received
    assert np.abs(other - sequential.prompt.received).max() > 0.01


@pytest.mark.slow
def test_training(tiny):
    unroll = Unroll(rounds=ROUNDS, remat=True)  # a custom gradient inside a recomputed round
    (_, expected), (out, ours) = (gradients(tiny, sweeps, unroll) for sweeps in (None, EXACT))
    close(ours, expected)
    assert out.sweeps.shape == (ROUNDS, len(QUESTIONS), 3) and out.sweeps.max() == 3
    _, cut = gradients(tiny, SweepConfig(window=STEPS, gradient=1), unroll)
    close(cut["loss"], expected["loss"])
    pairs = zip(jax.tree.leaves(cut["links"]), jax.tree.leaves(expected["links"]), strict=True)
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs) > 0.01
