"""A branch whose gradient is a branch, against `lax.cond`: the same numbers, fewer copies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.rounds.conditional import cond_or_zeros

ROUNDS, WIDTH = 8, 256


def by_cond(condition, make):
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(make))
    return jax.lax.cond(condition, make, lambda: zeros)


def final(branch, x, weights, *, at=ROUNDS - 1):
    """Rounds of a scan, one of which goes through the weights; closed over: floats and integers."""
    order = jnp.arange(WIDTH)[::-1]

    def body(x, index):
        def make():
            y = jnp.tanh(x @ weights)
            return {"sum": x + y[:, order], "large": y > 0}

        out = branch(index == at, make)
        return x * 1.01 + out["sum"], out["large"].sum()

    x, counts = jax.lax.scan(body, x, jnp.arange(ROUNDS))
    return (x**2).mean(), counts


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=shape) / WIDTH**0.5, jnp.float32)
        for shape in ((3, WIDTH), (WIDTH, WIDTH))
    )


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_values_and_gradients_are_those_of_cond(inputs, argnums):
    ours, expected = (
        jax.jit(jax.value_and_grad(functools.partial(final, branch), argnums, has_aux=True))(
            *inputs
        )
        for branch in (cond_or_zeros, by_cond)
    )
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    (_, counts), gradient = ours
    assert counts[:-1].sum() == 0 < counts[-1]
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(gradient))


def test_under_vmap_and_remat(inputs):
    x, weights = inputs
    many = jnp.stack([x, -x, 2 * x])

    def gradient(branch):
        step = jax.checkpoint(lambda x: final(branch, x, weights)[0])
        return jax.vmap(jax.grad(step))(many)

    np.testing.assert_allclose(gradient(cond_or_zeros), gradient(by_cond), rtol=1e-5, atol=1e-7)


def test_weights_are_not_copied_in_every_round(inputs):
    def temporary_bytes(branch):
        gradient = jax.jit(jax.grad(functools.partial(final, branch), has_aux=True))
        return gradient.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    size = inputs[1].nbytes
    assert temporary_bytes(cond_or_zeros) < 2 * size
    assert temporary_bytes(by_cond) > ROUNDS * size  # the control
