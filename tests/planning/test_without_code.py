"""Compilation up to machine code: what it says, its errors, and that it leaves nothing behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rmas_jax.planning.chips import Slice, chips
from rmas_jax.planning.without_code import WithoutCode
from rmas_jax.sharding import batch_sharding, make_mesh

ROOT = Path(__file__).parents[2]
NO_SLICE = Slice(chips()["v5e"], (3, 5))
with_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra: tpu)"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Gets the files of compilations."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def program():
    sharding = batch_sharding(8, make_mesh(8, 1, 1))
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)
    return jax.jit(jnp.sin).lower(x), sharding


def test_a_process_that_ends_without_dumps_is_an_error(folder, program):
    message = r"(?s)must dump its program, got exit code 1: .*a slice must be one that"
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        WithoutCode(NO_SLICE)(*program, threading.Event())
    assert not list(folder.iterdir())


def test_a_compilation_can_be_stopped(folder, program):
    is_stopped = threading.Event()
    is_stopped.set()
    with pytest.raises(CancelledError):
        WithoutCode(NO_SLICE)(*program, is_stopped)
    assert not list(folder.iterdir())


EQUAL = """
import threading
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from rmas_jax.planning.chips import parse_slice
from rmas_jax.planning.compiling import compile_whole
from rmas_jax.planning.hlo import program_cost
from rmas_jax.planning.slices import slice_devices
from rmas_jax.planning.without_code import WithoutCode
from rmas_jax.sharding import make_mesh

wanted = parse_slice("v5e:2x4")
mesh = make_mesh(1, 8, 1, devices=slice_devices(wanted))
rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
x = jax.ShapeDtypeStruct((64, 128, 512), jnp.bfloat16, sharding=rows)
split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
w = jax.ShapeDtypeStruct((6, 512, 512), jnp.bfloat16, sharding=split)
seed = jax.ShapeDtypeStruct((), jnp.int32)

def step(x, w, seed):
    def loss(w):
        y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        return jnp.square(y.astype(jnp.float32)).mean()
    value, gradient = jax.value_and_grad(loss)(w)
    return value, w - gradient, jnp.sort(x, axis=-1), jax.random.split(jax.random.key(seed), 4)

lowered = jax.jit(step, donate_argnums=1).lower(x, w, seed)
ours = WithoutCode(wanted)(lowered, rows, threading.Event())
whole = compile_whole(lowered)
assert ours.executable is None and whole.executable is not None
costs = [program_cost(found.text) for found in (ours, whole)]
for name in ("flops", "memory_bytes", "by_kind"):
    assert getattr(costs[0], name) == getattr(costs[1], name), name
assert costs[0].flops > 0 and costs[0].by_kind
for name in ("argument", "output", "alias"):
    assert ours.sizes[name] == whole.sizes[name], name
assert whole.sizes["temp"] <= ours.sizes["temp"] <= whole.sizes["temp"] + 512
assert ours.sizes["generated_code"] >= whole.sizes["generated_code"]
for found, wanted in zip(*map(jax.tree.leaves, (ours.outputs, whole.outputs)), strict=True):
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert found.sharding.is_equivalent_to(wanted.sharding, len(found.shape))
assert ours.seconds < whole.seconds, (ours.seconds, whole.seconds)
"""


def environment(folder):
    # libtpu refuses flags of the CPU's compiler.
    path = os.pathsep.join([str(ROOT), *sys.path])
    return os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "", "TMPDIR": str(folder)}


@pytest.mark.slow
@with_libtpu
def test_it_says_what_the_whole_compilation_says(tmp_path):
    """In a process of its own, whose backend has not started."""
    command = [sys.executable, "-c", EQUAL]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(tmp_path))
    assert not list(tmp_path.glob("rmas-plan-*"))


@pytest.mark.slow
@with_libtpu
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_plan_that_is_killed_leaves_neither_processes_nor_files(tmp_path, sent):
    command = [sys.executable, "-m", "rmas_jax.cli", "plan", "--config", "quickstart"]
    command += ["--slice", "v5e:2x4", "--set", "inner.steps=0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path)) as process:
        wait_for(lambda: list(tmp_path.glob("rmas-plan-*/stderr.txt")), seconds=300)
        process.send_signal(sent)
        assert process.wait(timeout=300) != 0  # after what is being lowered
    wait_for(lambda: not list(tmp_path.glob("rmas-plan-*")), seconds=60)
    wait_for(lambda: not commands_with(str(tmp_path)), seconds=60)


def wait_for(condition, *, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def commands_with(text):
    """Commands of running processes with a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [line for line in [path.read_bytes().decode()] if text in line]
        except OSError:  # it has ended
            continue
    return found
