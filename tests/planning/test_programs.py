"""Plans of single programs against closed forms, and where the compiler finds too little memory."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rmas_jax.planning.bounds import Bound, Part
from rmas_jax.planning.chips import parse_slice
from rmas_jax.planning.compiling import Compilations
from rmas_jax.planning.programs import Program, plan_program
from rmas_jax.sharding import batch_sharding, make_mesh, replicated


def test_memory_and_counts_of_a_product_on_eight_devices():
    mesh = make_mesh(8, 1, 1)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=batch_sharding(64, mesh))
    w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=replicated(mesh))
    program = Program(
        "product",
        lambda: jax.jit(jnp.matmul).lower(x, w),
        items=64,
        arguments={"inputs": x, "weights": w},
        beside={"weights": w},
        bound=Bound((Part(2.0 * 64 * 32 * 16, 8 * 4.0 * 32 * 16),)),
    )
    found = plan_program(program, Compilations())
    plan, compiled = found.plan, found.executable
    assert plan.memory["inputs"] == 8 * 32 * 4 and plan.memory["weights"] == 2 * 32 * 16 * 4
    assert plan.memory["outputs"] == 8 * 16 * 4
    stats = compiled.memory_analysis()
    by_compiler = stats.argument_size_in_bytes + stats.output_size_in_bytes
    by_compiler += stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    beside = 32 * 16 * 4
    assert plan.total_memory == by_compiler + beside
    assert plan.cost.flops == 2 * 8 * 32 * 16 and plan.cost.count() == 0
    # The program's traffic is that of the bound, and of inputs and outputs.
    moved = 4 * (8 * 32 + 32 * 16 + 8 * 16)
    assert plan.cost.memory_bytes == moved
    distance = plan.distance(parse_slice("H100:8"), dtype="bfloat16")
    assert distance == pytest.approx(moved / (4 * 32 * 16))


TOO_LARGE = """
import jax, jax.numpy as jnp
from rmas_jax.planning.chips import parse_slice
from rmas_jax.planning.compiling import Compilations, compile_whole
from rmas_jax.planning.programs import Program, plan_program
from rmas_jax.planning.slices import slice_devices
from rmas_jax.planning.table import plan_table
from rmas_jax.planning.without_code import WithoutCode

wanted = parse_slice("v5e:2x2")
device = slice_devices(wanted)[0]
sharding = jax.sharding.SingleDeviceSharding(device)
x = jax.ShapeDtypeStruct((100_000, 100_000), jnp.float32, sharding=sharding)
lower = lambda: jax.jit(lambda x: jnp.sort(x) @ x).lower(x)
program = Program("large", lower, 1, {"inputs": x}, {})
found = plan_program(program, Compilations(compiler=compile_whole))
plan = found.plan
assert found.executable is None and found.outputs is None and plan.cost is None
assert plan.memory["inputs"] == 4 * 100_000**2 and plan.memory["temporaries"] > 100 * 2**30
# Without machine code it is planned all the same, and does not fit.
plan = plan_program(program, Compilations(compiler=WithoutCode(wanted))).plan
assert 100 * 2**30 < plan.total_memory < 130 * 2**30 and plan.cost.flops >= 2 * 100_000**3
lines = list(plan_table([plan], wanted, dtype="float32", shards=1))
assert any(line.startswith("large does not fit") for line in lines), lines
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra: tpu)")
def test_a_compiler_that_refuses_says_how_much_memory_is_missing():
    """In a process of its own, whose backend has not started."""
    root = Path(__file__).parents[2]
    # libtpu refuses flags of the CPU's compiler.
    path = os.pathsep.join([str(root), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", TOO_LARGE], check=True, cwd=root, env=environment)
