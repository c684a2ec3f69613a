"""The page of the study of parallel latents: of its results, with predictions by the ridge."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, random_agent

from experiments.studies.parallel_latents_page import light_agents, page, sweeps_of_a_step
from experiments.studies.pretrained_thinker import PENALTY, fit

FOLDER = Path(__file__).parent.parent / "docs" / "parallel-latents"


def test_the_page_is_that_of_its_results():
    results = json.loads((FOLDER / "results.json").read_text())
    assert (FOLDER / "README.md").read_text() == page(results)
    assert page(results) != page({})


def test_a_sweep_costs_a_step_below_the_ridge_and_its_positions_above():
    agents = light_agents()
    assert sweeps_of_a_step(agents, 1, 32, "H100") == pytest.approx(1, rel=0.01)
    more = [sweeps_of_a_step(agents, 32, window, "H100") for window in (16, 32, 64)]
    assert more[1] == pytest.approx(2 * more[0], rel=0.01)
    assert more[2] == pytest.approx(2 * more[1], rel=0.01) and more[0] > 1.4


def test_the_link_of_a_pretrained_agent_is_a_ridge_regression():
    """Against least squares with a row of the penalty's root for each element of a state."""
    agent = random_agent(CONFIGS["planner"], seed=0)
    ids = np.random.default_rng(1).integers(2, agent.config.vocab_size, (16, 9))
    link = fit(agent, ids)
    states = agent.read(agent.embed(jnp.asarray(ids)), jnp.ones(ids.shape, bool))[0][:, :-1]
    width = agent.config.width
    x = np.asarray(states, np.float64).reshape(-1, width)
    y = np.asarray(agent.embed(jnp.asarray(ids))[:, 1:], np.float64).reshape(-1, width)
    means = x.mean(0), y.mean(0)
    x, y = x - means[0], y - means[1]
    root = np.sqrt(PENALTY * np.square(x).mean() * len(x))
    weight = np.linalg.lstsq(np.r_[x, root * np.eye(width)], np.r_[y, np.zeros((width, width))])[0]
    np.testing.assert_allclose(link.weight, weight, rtol=1e-3, atol=1e-5)
    fed = link.feed("any", states)[0, 0]
    expected = (np.asarray(states[0, 0], np.float64) - means[0]) @ weight + means[1]
    np.testing.assert_allclose(fed, expected, rtol=1e-3, atol=1e-5)
