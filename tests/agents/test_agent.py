"""An agent is a value: it passes through `jit`, `grad` and `vmap` with its decoder beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from systems import CONFIGS, random_agent

IDS = np.array([[3, 1, 4], [0, 5, 9]])
VALID = IDS > 0


def test_parameters_are_its_leaves_and_the_decoder_is_static(tiny_system):
    agent = tiny_system.agents["solver"]
    leaves, structure = jax.tree.flatten(agent)
    assert [x.shape for x in leaves] == [x.shape for x in jax.tree.leaves(agent.params)]
    again = jax.tree.unflatten(structure, leaves)
    assert again.decoder is agent.decoder and again.config is agent.config
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), agent)
    assert (half.width, half.dtype) == (CONFIGS["solver"].width, jnp.bfloat16)
    assert half.embed(IDS).dtype == half.empty_cache(2, 3).tail.keys.dtype == jnp.bfloat16


def test_one_function_serves_agents_and_compiles_for_each_decoder(tiny_system):
    """Other parameters of the same decoder compile nothing."""

    @jax.jit
    def logits(agent):
        return agent.unembed(agent.read(agent.embed(IDS), VALID)[0])

    solver = tiny_system.agents["solver"]
    found = logits(solver)
    other = random_agent(CONFIGS["solver"], 7)
    assert np.abs(logits(other) - found).max() > 0.1 and logits._cache_size() == 1
    assert logits(tiny_system.agents["critic"]).shape == found.shape
    assert logits._cache_size() == 2


def test_the_gradient_of_reading_with_respect_to_embeddings(tiny_system, float64):
    """Against central differences; a pad has none, and a token none from the states before it."""
    agent = float64(tiny_system.agents["solver"])
    rng = np.random.default_rng(0)
    embeds = np.asarray(agent.embed(IDS), np.float64)
    weights = rng.normal(size=embeds.shape) * VALID[..., None]

    def scalar(embeds, agent, last):
        hidden = agent.read(embeds, VALID)[0]
        return (hidden * weights)[:, :last].sum()

    value_and_grad = jax.jit(jax.value_and_grad(scalar), static_argnums=2)
    _, gradient = value_and_grad(embeds, agent, 3)
    assert np.all(np.abs(gradient).max(axis=2)[VALID] > 1e-3) and not gradient[~VALID].any()
    _, of_first = value_and_grad(embeds, agent, 1)
    assert of_first[0, 0].any() and not of_first[:, 1:].any()
    toward = rng.normal(size=embeds.shape)
    ahead, behind = (value_and_grad(embeds + s * toward, agent, 3)[0] for s in (1e-6, -1e-6))
    np.testing.assert_allclose((gradient * toward).sum(), (ahead - behind) / 2e-6, rtol=1e-6)


def test_agents_of_one_decoder_can_be_mapped():
    """A leading axis of parameters; gradients come out in the agent's own structure."""
    agents = [random_agent(CONFIGS["critic"], seed) for seed in (0, 1)]
    several = jax.tree.map(lambda *x: jnp.stack(x), *agents)

    def loss(agent):
        hidden = agent.read(agent.embed(IDS), VALID)[0]
        return jax.nn.logsumexp(agent.unembed(hidden)[:, -1], axis=-1).sum()

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(several)
    assert jax.tree.structure(gradients) == jax.tree.structure(several)
    assert np.ptp(values) > 0.1
    one_by_one = jax.jit(jax.value_and_grad(loss))
    for i, agent in enumerate(agents):
        value, gradient = one_by_one(agent)
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        for ours, alone in zip(*map(jax.tree.leaves, (gradients, gradient)), strict=True):
            np.testing.assert_allclose(ours[i], alone, rtol=1e-3, atol=1e-4)
