import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.host.compilations import compilations


def test_new_shapes_count_and_known_ones_do_not():
    double = jax.jit(lambda x: 2 * x)
    short, long = np.ones(3, np.float32), np.ones(4, np.float32)
    start = compilations()
    double(short)
    first = compilations()
    double(short)
    assert first == compilations() == start + 1
    double(long)
    assert compilations() == first + 1


def test_operations_outside_jit_count_too():
    start = compilations()
    jnp.ones((7, 3)) @ jnp.ones((3, 2))
    assert compilations() > start
