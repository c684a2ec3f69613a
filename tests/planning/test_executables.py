"""Programs compiled ahead of time: saved, found by their text, and run."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.host.compilations import compilations
from rmas_jax.planning.executables import (
    ExecutableError,
    ahead_of_time,
    save_executables,
    use_executables,
    without_cache,
)
from rmas_jax.sharding import batch_sharding, make_mesh, replicated


@pytest.fixture(autouse=True)
def none_in_use():
    yield
    use_executables(None)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


def scaled(factor):
    return jax.jit(lambda x, w: {"y": factor * x["x"] @ w})


def shapes(mesh, rows=8):
    of = jax.ShapeDtypeStruct
    x = of((rows, 4), jnp.float32, sharding=batch_sharding(rows, mesh))
    return {"x": x}, of((4, 4), jnp.float32, sharding=replicated(mesh))


def arrays(mesh, rows=8):
    return jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, 2.0, np.float32), x.sharding), shapes(mesh, rows)
    )


@pytest.fixture
def file(mesh, tmp_path):
    lowered = scaled(3.0).lower(*shapes(mesh))
    with without_cache():
        save_executables(tmp_path / "programs", [(lowered, lowered.compile())])
    jax.clear_caches()
    return tmp_path / "programs"


def test_a_saved_program_runs_without_compilation(file, mesh):
    given = arrays(mesh)
    use_executables(file)
    before = compilations()
    out = ahead_of_time(scaled(3.0), mesh=mesh)(*given)
    assert compilations() == before
    np.testing.assert_array_equal(out["y"], np.full((8, 4), 3 * 4 * 4.0))


@pytest.mark.parametrize(("factor", "rows"), [(5.0, 8), (3.0, 4)])
def test_another_program_or_shape_compiles_as_usual(file, mesh, factor, rows):
    given = arrays(mesh, rows)
    use_executables(file)
    before = compilations()
    out = ahead_of_time(scaled(factor), mesh=mesh)(*given)
    assert compilations() > before
    np.testing.assert_array_equal(out["y"], np.full((rows, 4), factor * 4 * 4.0))


def test_without_a_file_the_function_is_unchanged(mesh):
    jitted = scaled(1.0)
    assert ahead_of_time(jitted, mesh=mesh) is jitted


def test_files_that_are_none_are_refused(file, tmp_path):
    other = tmp_path / "other"
    with pytest.raises(ExecutableError, match="other: cannot be read: No such file"):
        use_executables(other)
    # The last ones end in a KeyError and a ValueError.
    for content in (b"", b"nothing", pickle.dumps([1]), b"h\xff.", b"\x80\xff"):
        other.write_bytes(content)
        with pytest.raises(ExecutableError, match="must be a file of rmas plan --executable"):
            use_executables(other)
    saved = pickle.loads(file.read_bytes())
    other.write_bytes(pickle.dumps(saved | {"jax": "0.1"}))
    with pytest.raises(ExecutableError, match=r"must be made with JAX .*, got '0.1'"):
        use_executables(other)
