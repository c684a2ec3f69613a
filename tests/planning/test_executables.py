"""Programs compiled ahead of time: saved, found by their text, and run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from executables_worker import compiled

from rmas_jax.host.compilations import compilations
from rmas_jax.planning.executables import (
    ExecutableError,
    ahead_of_time,
    in_use,
    read_executables,
    save_executables,
    without_cache,
)
from rmas_jax.sharding import batch_sharding, make_mesh, replicated

SETTINGS = {"devices": "cpu", "mesh": {"data": 2}, "phases": [{"steps": 3}, {"steps": 4}]}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


def scaled(factor):
    """A jitted function with a static argument, an optional array and a donated one."""

    @functools.partial(jax.jit, static_argnames=("power",), donate_argnames="old")
    def product(power, x, w, *, old, more=None):
        y = factor * x["x"] ** power @ w + old
        return {"y": y if more is None else y + more}

    return ahead_of_time(product, static=("power",))


def shapes(mesh, rows=8):
    of = jax.ShapeDtypeStruct
    split = batch_sharding(rows, mesh)
    x = of((rows, 4), jnp.float32, sharding=split)
    w = of((4, 4), jnp.float32, sharding=replicated(mesh))
    return ({"x": x}, w), {"old": of((rows, 4), jnp.float32, sharding=split)}


def arrays(mesh, rows=8):
    return jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, 2.0, np.float32), x.sharding), shapes(mesh, rows)
    )


@pytest.fixture
def file(mesh, tmp_path):
    given, options = shapes(mesh)
    lowered = scaled(3.0).lower(2, *given, **options)
    with without_cache():
        programs = [(lowered, lowered.compile())]
        save_executables(tmp_path / "programs", programs, made_for=SETTINGS)
    jax.clear_caches()
    return tmp_path / "programs"


def test_a_saved_program_runs_without_compilation(file, mesh, caplog):
    caplog.set_level("INFO")
    given, options = arrays(mesh)
    executables = read_executables(file, made_for=SETTINGS)
    function = scaled(3.0)
    before, made = len(compiled()), compilations()
    with in_use(executables):
        out = function(2, *given, **options)
        assert len(compiled()) == before
        assert compilations() == made + 1  # its seconds are no part of a measurement
        np.testing.assert_array_equal(out["y"], np.full((8, 4), 3 * 4 * 4 * 2.0 + 2))
        assert options["old"].is_deleted()
        again = function(2, *given, old=out["y"])
        np.testing.assert_array_equal(again["y"], np.full((8, 4), 2 * 3 * 4 * 4 * 2.0 + 2))
        assert len(compiled()) == before and compilations() == made + 1
    assert f"{file}: 1 of its 1 programs were taken" in caplog.text


@pytest.mark.parametrize(("factor", "power", "rows"), [(5.0, 2, 8), (3.0, 1, 8), (3.0, 2, 4)])
def test_another_program_or_shape_compiles_as_usual(file, mesh, factor, power, rows):
    given, options = arrays(mesh, rows)
    executables = read_executables(file, made_for=SETTINGS)
    before = len(compiled())
    with in_use(executables):
        out = scaled(factor)(power, *given, **options)
    assert len(compiled()) > before and not executables.taken
    np.testing.assert_array_equal(out["y"], np.full((rows, 4), factor * 4 * 2**power * 2.0 + 2))


def test_without_a_file_it_is_the_jitted_function(mesh):
    function = scaled(1.0)
    given, options = arrays(mesh)
    function(1, *given, **options)
    assert function._cache_size() == 1  # of `jax.jit`
    assert function.__name__ == "product"


def test_files_that_are_none_or_damaged_are_refused(file, tmp_path):
    other = tmp_path / "other"
    with pytest.raises(ExecutableError, match="other: cannot be read: No such file"):
        read_executables(other, made_for=SETTINGS)
    content = file.read_bytes()
    for wrong in (b"", b"nothing", b"executables of rmas, 1", content[1:]):
        other.write_bytes(wrong)
        with pytest.raises(ExecutableError, match="must be a file of rmas plan --executable"):
            read_executables(other, made_for=SETTINGS)
    middle = len(content) // 2
    for damaged in (
        content[:-1],
        content[:90],
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        content.replace(b'"steps": 4', b'"steps": 5'),
    ):
        other.write_bytes(damaged)
        with pytest.raises(ExecutableError, match=r"other: is damaged: .* make it again with rmas"):
            read_executables(other, made_for=SETTINGS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"devices": "TPU v5 lite"}, "devices must be 'TPU v5 lite', got 'cpu';"),
        ({"mesh": {"data": 4}}, "mesh.data must be 4, got 2;"),
        ({"phases": [{"steps": 3}, {"steps": 5}]}, "phases.1.steps must be 5, got 4;"),
        ({"phases": []}, r"phases must be \[\], got \[{'steps': 3}, {'steps': 4}\];"),
        ({"jax": "0.1"}, rf"jax must be '0.1', got '{jax.__version__}';"),
        ({"new": 1}, "new must be 1, got None;"),
    ],
)
def test_a_file_for_other_settings_is_refused(file, change, words):
    wanted = json.loads(json.dumps(SETTINGS)) | change
    with pytest.raises(ExecutableError, match=f"programs: must be made for this run: {words}"):
        read_executables(file, made_for=wanted)
