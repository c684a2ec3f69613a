import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.links import INNER, LinkConfig, apply_link, init_link
from rmas_jax.training.inner.step import regression_loss
from rmas_jax.training.states.token_states import states_before

LINK = LinkConfig(INNER, "ln_res", 8, 8)


def test_the_loss_is_that_of_torch():
    torch = pytest.importorskip("torch")
    hidden, target = np.random.default_rng(0).normal(size=(2, 64, 8)).astype(np.float32)
    params = init_link(LINK, jax.random.key(0))
    out = torch.tensor(np.asarray(apply_link(LINK, params, jnp.asarray(hidden))))
    goal = torch.tensor(target)
    cosine = (1 - torch.nn.functional.cosine_similarity(out, goal, dim=-1)).mean()
    expected = 0.7 * cosine + 0.2 * torch.nn.functional.mse_loss(out, goal)
    loss = regression_loss(LINK, params, hidden, target, cosine_weight=0.7, mse_weight=0.2)
    np.testing.assert_allclose(loss, expected.numpy(), rtol=1e-5)
    other = regression_loss(LINK, params, hidden, target, cosine_weight=0.7, mse_weight=0.0)
    assert abs(other - loss) > 1e-2  # the control


def test_states_are_those_before_the_tokens(tiny_system):
    agent = tiny_system.agents["solver"]
    ids = jnp.arange(12).reshape(2, 6)
    hidden = states_before(agent, ids, jnp.ones((2, 6), int))
    whole, _ = agent.read(agent.embed(ids), jnp.ones((2, 6), bool))
    np.testing.assert_allclose(hidden, whole[:, :5], atol=1e-6)
