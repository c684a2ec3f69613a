"""Compilations that are kept: found again by program and devices, and by nothing else."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rmas_jax.planning import compiling
from rmas_jax.planning.compiling import Compilations
from rmas_jax.planning.programs import Program, plan_program
from rmas_jax.sharding import batch_sharding, make_mesh, replicated


def program(mesh, rows=64):
    x = jax.ShapeDtypeStruct((rows, 32), jnp.float32, sharding=batch_sharding(rows, mesh))
    w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=replicated(mesh))
    lower = functools.partial(jax.jit(lambda x, w: (x @ w, w.sum())).lower, x, w)
    return Program("product", lower, rows, {"inputs": x, "weights": w}, {})


@pytest.fixture
def compiled(monkeypatch):
    """Programs that are compiled, not taken from the folder."""
    found = []
    real = compiling._compile

    def note(lowered):
        found.append(lowered)
        return real(lowered)

    monkeypatch.setattr(compiling, "_compile", note)
    return found


def test_an_earlier_compilation_gives_the_same_plan(tmp_path, compiled):
    mesh = make_mesh(8, 1, 1)
    first, again = (plan_program(program(mesh), Compilations(tmp_path / "new")) for _ in range(2))
    assert len(compiled) == 1 and first.executable is not None and again.executable is None
    assert again.plan.memory == first.plan.memory and again.plan.cost == first.plan.cost
    outputs = [jax.tree.leaves(found.outputs) for found in (first, again)]
    for ours, expected in zip(*outputs, strict=True):
        assert (ours.shape, ours.dtype) == (expected.shape, expected.dtype)
        assert ours.sharding.is_equivalent_to(expected.sharding, len(ours.shape))
    assert outputs[1][0].sharding.spec == PartitionSpec(("data", "fsdp"))


def test_other_programs_devices_and_damaged_files_are_compiled(tmp_path, compiled):
    whole = make_mesh(8, 1, 1)
    plan_program(program(whole), Compilations(tmp_path))
    plan_program(program(whole, rows=16), Compilations(tmp_path))
    plan_program(program(make_mesh(1, 1, 8)), Compilations(tmp_path))
    plan_program(program(make_mesh(4, 1, 1, devices=jax.devices()[:4])), Compilations(tmp_path))
    assert len(compiled) == len(list(tmp_path.glob("*.json.gz"))) == 4
    for path in tmp_path.glob("*.json.gz"):
        path.write_bytes(path.read_bytes()[:-9])
    plan_program(program(whole), Compilations(tmp_path))
    plan_program(program(whole), Compilations(tmp_path))
    assert len(compiled) == 5
