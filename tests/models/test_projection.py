"""Projections against numpy, in values and derivatives; which factor a CPU has first."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.models.projection import project
from rmas_jax.partition import ONE_DEVICE

CASES = [  # axes of x after its second, and of the results
    ((6,), (5,)),
    ((6,), (3, 4)),
    ((2, 3), (5,)),
]


def arrays(inputs, outputs, time):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, time, *inputs)), rng.normal(size=(*outputs, *inputs))
    return x.astype(np.float32), kernel.astype(np.float32), rng.normal(size=(2, time, *outputs))


@pytest.mark.parametrize("time", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs"), CASES)
def test_values_and_derivatives_are_those_of_numpy(inputs, outputs, time):
    x, kernel, weights = arrays(inputs, outputs, time)
    n, m = len(inputs), len(outputs)
    last = [*range(2, 2 + n)], [*range(m, m + n)]

    def value(x, kernel):
        return project(x, kernel, ONE_DEVICE)

    expected = np.tensordot(x, kernel, last)
    np.testing.assert_allclose(jax.jit(value)(x, kernel), expected, rtol=1e-5, atol=1e-5)
    # Both are derived, the activations alone, or the kernel alone.
    by_x = np.tensordot(weights, kernel, [[*range(2, 2 + m)], [*range(m)]])
    by_kernel = np.tensordot(weights, x, [[0, 1], [0, 1]])

    def loss(x, kernel):
        return jnp.sum(value(x, kernel) * weights)

    for argnums, wanted in (((0, 1), (by_x, by_kernel)), ((0,), (by_x,)), ((1,), (by_kernel,))):
        found = jax.jit(jax.grad(loss, argnums))(x, kernel)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    _, tangent = jax.jvp(value, (x, kernel), (x, 2 * kernel))
    np.testing.assert_allclose(tangent, 3 * expected, rtol=1e-5, atol=1e-5)


def test_sums_have_the_dtype_that_is_asked_for():
    x, kernel, _ = arrays((6,), (5,), 1)
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    assert project(x, kernel, ONE_DEVICE).dtype == jnp.bfloat16
    assert project(x, kernel, ONE_DEVICE, dtype=jnp.float32).dtype == jnp.float32


@pytest.fixture
def optimised():
    """Compiles as outside of the tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_a_cpu_has_the_kernel_first_for_single_positions_alone(optimised):
    def rows_of_results(time):
        x, kernel, _ = arrays((64,), (96,), time)
        made = jax.jit(lambda x, kernel: project(x, kernel, ONE_DEVICE) + 1)
        text = made.lower(x, kernel).compile().as_text()
        (shape,) = re.findall(r"= f32\[(\d+),\d+\]\S* dot\(", text)
        return int(shape)

    assert rows_of_results(1) == 96  # [out, rows]: XLA has not put the kernel last again
    assert rows_of_results(3) == 6
