"""Links that train block by block, against the same training with all pairs in one array."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import random_link

from rmas_jax.config import InnerConfig
from rmas_jax.links import INNER, OUTER, LinkConfig, apply_link
from rmas_jax.training.inner import regression
from rmas_jax.training.inner.regression import (
    Pairs,
    start_training,
    steps_per_block,
    train_side_by_side,
)
from rmas_jax.training.inner.step import UpstreamLink, regress_block, regression_loss
from rmas_jax.training.states.token_states import TokenStates

CONFIG = InnerConfig(steps=23, batch_size=16, learning_rate=1e-2, warmup_steps=5, noise=0.1)
KEY = jax.random.key(1)
SENDER = LinkConfig(INNER, "ln_res", 8, 8)
LINK = LinkConfig(OUTER, "ln_res", 8, 6)
STEP_BYTES = CONFIG.batch_size * (8 + 6) * 4


@pytest.fixture
def pairs():
    """States in two parts, of which not all count, and a table of embeddings."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 11, 80)
    rows = random.normal(size=(11, 8))[ids] + 0.3 * random.normal(size=(80, 8))
    numbers = np.flatnonzero(random.uniform(size=80) < 0.7)
    table = random.normal(size=(11, 6)).astype(np.float32)
    states = TokenStates(tuple(np.split(rows.astype(np.float32), [50])), ids, np.arange(80))
    return Pairs(states, numbers, ids[numbers], table)


@pytest.fixture
def upstream():
    return UpstreamLink(link=SENDER, params=random_link(SENDER, 3))


def train(pairs, config=CONFIG, *, key=KEY, upstream=None, device=None, params=None):
    training = start_training(
        LINK,
        random_link(LINK, 2) if params is None else params,
        pairs,
        config,
        key=key,
        device=device or jax.devices()[0],
        upstream=upstream,
    )
    return train_side_by_side({"link": training}, lambda steps: None)["link"]


def by_definition(pairs, config, upstream):
    """One step after the other, from all pairs in one array."""
    hidden = np.concatenate(pairs.states.parts)[pairs.numbers]
    if upstream is not None:
        hidden = apply_link(upstream.link, upstream.params, hidden)
    target = pairs.table[pairs.ids]
    rms = np.sqrt(np.mean(np.square(hidden)))
    rows = jax.random.randint(KEY, (config.steps, config.batch_size), 0, len(hidden))
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(
                0.0, config.learning_rate, config.warmup_steps, config.steps
            ),
            b2=0.95,
            weight_decay=0.0,
        ),
    )

    @jax.jit
    def step(params, state, read, target):
        loss = functools.partial(
            regression_loss,
            LINK,
            cosine_weight=config.cosine_weight,
            mse_weight=config.mse_weight,
        )
        value, grads = jax.value_and_grad(loss)(params, read, target)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = random_link(LINK, 2)
    state, losses = optimizer.init(params), []
    for i, drawn in enumerate(rows):
        read = hidden[drawn]
        noise = jax.random.normal(jax.random.fold_in(KEY, i), read.shape)
        params, state, loss = step(params, state, read + config.noise * rms * noise, target[drawn])
        losses.append(loss)
    return params, losses


class Case(NamedTuple):
    steps_per_block: int
    has_noise: bool
    passes_a_link: bool


@pytest.mark.parametrize(
    "case",
    [Case(1, False, True), Case(4, True, True), Case(4, False, False), Case(100, True, False)],
    ids=str,
)
def test_blocks_train_as_all_pairs_in_one_array_do(pairs, upstream, monkeypatch, case):
    monkeypatch.setattr(regression, "BLOCK_BYTES", case.steps_per_block * STEP_BYTES)
    config = CONFIG if case.has_noise else dataclasses.replace(CONFIG, noise=0.0)
    link = upstream if case.passes_a_link else None
    params, curves = train(pairs, config, upstream=link)
    expected, losses = by_definition(pairs, config, link)
    assert curves["loss"].shape == curves["grad_norm"].shape == (config.steps,)
    np.testing.assert_allclose(curves["loss"], losses, rtol=1e-5)
    assert curves["loss"][-1] < 0.9 * curves["loss"][0]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), params, expected)
    # The control: other rows are drawn with another key.
    other, _ = train(pairs, config, key=jax.random.key(2), upstream=link)
    assert np.abs(other["proj1"]["kernel"] - params["proj1"]["kernel"]).max() > 1e-2


def test_blocks_are_about_equally_long_and_fit():
    for steps, most in ((23, 4), (24, 4), (1, 4), (100, 64), (7, 100)):
        config = dataclasses.replace(CONFIG, steps=steps, warmup_steps=0)
        length = steps_per_block(config, regression.BLOCK_BYTES // (most * config.batch_size))
        assert length <= most
        assert -(-steps // length) == -(-steps // most)  # no more blocks than are needed
    assert steps_per_block(CONFIG, 2**40) == 1


def test_a_link_compiles_once_whatever_number_of_pairs_there_are(pairs, monkeypatch):
    monkeypatch.setattr(regression, "BLOCK_BYTES", 4 * STEP_BYTES)  # the last block is shorter
    traces = []

    def counted(*args, **options):
        traces.append(args)
        return regress_block(*args, **options)

    jitted = jax.jit(counted, static_argnums=(0, 1), donate_argnums=2)
    monkeypatch.setattr(regression, "regress_jitted", jitted)
    train(pairs)
    fewer = pairs._replace(numbers=pairs.numbers[:20], ids=pairs.ids[:20])
    train(fewer)
    assert len(traces) == 1


def test_links_train_on_devices_of_their_own_to_the_same_bits(pairs):
    start = random_link(LINK, 2)
    devices = jax.devices()[:2]
    trainings = {
        name: start_training(LINK, start, pairs, CONFIG, key=KEY, device=device)
        for name, device in zip("ab", devices, strict=True)
    }
    for training, device in zip(trainings.values(), devices, strict=True):
        training.advance()
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(training.state))
    steps = []
    results = train_side_by_side(trainings, steps.append)
    assert sum(steps) == 0  # all fitted into the block that was sent
    jax.tree.map(np.testing.assert_array_equal, results["a"], results["b"])
    jax.tree.map(jnp.copy, start)  # was not donated
