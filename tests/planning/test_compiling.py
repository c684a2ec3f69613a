"""Compilations that are kept: found again by program and devices, and by nothing else."""

import functools
import threading
from concurrent.futures import CancelledError

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rmas_jax.planning.compiling import Compilations, compile_whole
from rmas_jax.planning.programs import Program, plan_chains, plan_program
from rmas_jax.sharding import batch_sharding, make_mesh, replicated


def program(mesh, rows=64):
    x = jax.ShapeDtypeStruct((rows, 32), jnp.float32, sharding=batch_sharding(rows, mesh))
    w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=replicated(mesh))
    lower = functools.partial(jax.jit(lambda x, w: (x @ w, w.sum())).lower, x, w)
    return Program("product", lower, rows, {"inputs": x, "weights": w}, {})


@pytest.fixture
def compiled():
    """Programs that are compiled, not taken from the folder."""
    return []


@pytest.fixture
def compilations(compiled):
    """Makes compilations of a folder, and notes them."""

    def compile_(lowered, sharding, is_stopped):
        compiled.append(lowered)
        return compile_whole(lowered, sharding, is_stopped)

    return functools.partial(Compilations, compiler=compile_)


def test_an_earlier_compilation_gives_the_same_plan(tmp_path, compiled, compilations):
    mesh = make_mesh(8, 1, 1)
    first, again = (plan_program(program(mesh), compilations(tmp_path / "new")) for _ in range(2))
    assert len(compiled) == 1 and first.executable is not None and again.executable is None
    assert again.plan.memory == first.plan.memory and again.plan.cost == first.plan.cost
    outputs = [jax.tree.leaves(found.outputs) for found in (first, again)]
    for ours, expected in zip(*outputs, strict=True):
        assert (ours.shape, ours.dtype) == (expected.shape, expected.dtype)
        assert ours.sharding.is_equivalent_to(expected.sharding, len(ours.shape))
    assert outputs[1][0].sharding.spec == PartitionSpec(("data", "fsdp"))


def test_other_programs_devices_and_damaged_files_are_compiled(tmp_path, compiled, compilations):
    whole = make_mesh(8, 1, 1)
    plan_program(program(whole), compilations(tmp_path))
    plan_program(program(whole, rows=16), compilations(tmp_path))
    plan_program(program(make_mesh(1, 1, 8)), compilations(tmp_path))
    plan_program(program(make_mesh(4, 1, 1, devices=jax.devices()[:4])), compilations(tmp_path))
    assert len(compiled) == len(list(tmp_path.glob("*.json.gz"))) == 4
    for path in tmp_path.glob("*.json.gz"):
        path.write_bytes(path.read_bytes()[:-9])
    plan_program(program(whole), compilations(tmp_path))
    plan_program(program(whole), compilations(tmp_path))
    assert len(compiled) == 5


def test_what_is_stopped_compiles_no_further_program(compiled, compilations):
    made = compilations()
    plan_program(program(make_mesh(8, 1, 1)), made)
    made.is_stopped.set()
    with pytest.raises(CancelledError):
        plan_program(program(make_mesh(8, 1, 1), rows=16), made)
    assert len(compiled) == 1


def test_an_error_in_a_chain_stops_the_others(compilations):
    mesh, made, begun = make_mesh(8, 1, 1), compilations(), threading.Barrier(2)

    def failing(compile_):
        begun.wait()
        raise ValueError("no program")

    def long(compile_):
        begun.wait()
        made.is_stopped.wait(60)
        compile_(program(mesh))

    with pytest.raises(ValueError, match="no program"):
        plan_chains([failing, long], made)
    assert not made.known
