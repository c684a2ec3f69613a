import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.config import InnerConfig
from rmas_jax.links import INNER, LinkConfig, apply_link, init_link
from rmas_jax.training.inner import next_token_pairs, regress_link, regression_loss

LINK = LinkConfig(INNER, "ln_res", 8, 8)
CONFIG = InnerConfig(steps=60, batch_size=16, learning_rate=1e-2, warmup_steps=5)


@pytest.fixture
def pairs():
    hidden, target = np.random.default_rng(0).normal(size=(2, 64, 8)).astype(np.float32)
    return hidden, target


def test_the_loss_is_that_of_torch(pairs):
    torch = pytest.importorskip("torch")
    hidden, target = pairs
    params = init_link(LINK, jax.random.key(0))
    out = torch.tensor(np.asarray(apply_link(LINK, params, jnp.asarray(hidden))))
    goal = torch.tensor(target)
    cosine = (1 - torch.nn.functional.cosine_similarity(out, goal, dim=-1)).mean()
    expected = 0.7 * cosine + 0.2 * torch.nn.functional.mse_loss(out, goal)
    loss = regression_loss(LINK, params, hidden, target, cosine_weight=0.7, mse_weight=0.2)
    np.testing.assert_allclose(loss, expected.numpy(), rtol=1e-5)
    other = regression_loss(LINK, params, hidden, target, cosine_weight=0.7, mse_weight=0.0)
    assert abs(other - loss) > 1e-2  # the control


def test_training_learns_a_map_and_says_how(pairs):
    hidden, _ = pairs
    target = hidden[:, ::-1] * 2
    start = init_link(LINK, jax.random.key(0))
    train = jax.jit(regress_link, static_argnums=(0, 4))
    trained, curves = train(LINK, start, hidden, target, CONFIG, key=jax.random.key(1))
    assert curves["loss"].shape == (CONFIG.steps,)
    assert curves["loss"][-1] < 0.7 * curves["loss"][0]
    assert not np.allclose(trained["proj1"]["kernel"], start["proj1"]["kernel"])


def test_no_steps_leave_the_link_as_it_is(pairs):
    start = init_link(LINK, jax.random.key(0))
    config = dataclasses.replace(CONFIG, steps=0, warmup_steps=0)
    trained, _ = regress_link(LINK, start, *pairs, config, key=jax.random.key(1))
    assert trained is start


def test_padding_behind_the_pairs_changes_nothing(pairs):
    start, config = init_link(LINK, jax.random.key(0)), dataclasses.replace(CONFIG, noise=0.1)
    train = jax.jit(regress_link, static_argnums=(0, 4))
    padded = [np.concatenate([x, np.full((30, 8), 1e3, np.float32)]) for x in pairs]

    def kernel(hidden, target, count):
        key = jax.random.key(1)
        trained, _ = train(LINK, start, hidden, target, config, key=key, count=count)
        return trained["proj1"]["kernel"]

    expected = kernel(*pairs, None)
    np.testing.assert_allclose(kernel(*padded, 64), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(kernel(*padded, 94), expected, rtol=1e-2, atol=1e-2)  # the control


def test_states_are_paired_with_the_next_embedding(tiny_system):
    model, params = tiny_system.system.models["solver"], tiny_system.agents["solver"]
    ids = jnp.arange(12).reshape(2, 6)
    hidden, target = next_token_pairs(model, params, ids, jnp.ones((2, 6), bool), width=3)
    embeds = model.apply({"params": params}, ids, method="embed")  # scaled, as Gemma's are
    whole = model.apply({"params": params}, embeds, jnp.ones((2, 6), bool))
    np.testing.assert_array_equal(target, embeds[:, 3:])
    np.testing.assert_allclose(hidden, whole[:, 2:5], atol=1e-6)
