"""One of several processes, of which a test takes one away: it sums over all devices, or waits.

    python tests/heartbeat_worker.py PROCESS PROCESSES PORT HEARTBEAT_S WORK

WORK is `sums`, `waits`, `compiles` or `joins`.

With `compiles`, all end together after SIGTERM; process 1 compiles for a while before it sums.
With `joins`, all must have joined within HEARTBEAT_S, too.
"""

from __future__ import annotations

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.host import processes
from rmas_jax.host.errors import PREEMPTED
from rmas_jax.host.preemption import PreemptedError, end_if_due
from rmas_jax.sharding import make_mesh

LONG = 500  # instructions


def main() -> None:
    process, count, port, heartbeat_s = map(int, sys.argv[1:5])
    processes.HEARTBEAT_S = heartbeat_s
    if sys.argv[5] == "joins":
        processes.JOIN_S = heartbeat_s
    jax.config.update("jax_num_cpu_devices", 2)
    processes.join(f"127.0.0.1:{port}", count, process)
    mesh = make_mesh(2 * count)
    split = NamedSharding(mesh, PartitionSpec("data"))
    ones = jax.make_array_from_callback((2 * count,), split, lambda _: np.ones(1))
    total = jax.jit(lambda x: x.sum())
    print("ready", flush=True)
    if sys.argv[5] == "waits" and process != 1:
        processes.barrier()  # for the one that never comes
    if sys.argv[5] == "compiles" and process == 1:
        compile_long()
    while True:
        if sys.argv[5] == "compiles":
            end_if_due("stopped together")
        if sys.argv[5] != "waits":
            assert float(total(ones)) == 2 * count
        time.sleep(0.05)


def compile_long() -> None:
    """Compiles a program of many instructions, which takes ten seconds or more."""
    x = jax.ShapeDtypeStruct((64, 64), np.float32)
    lowered = jax.jit(
        lambda x: functools.reduce(lambda y, i: jnp.sin(y @ x + i), range(LONG), x)
    ).lower(x)
    print("compiles", flush=True)
    lowered.compile()
    print("has compiled", flush=True)


if __name__ == "__main__":
    try:
        main()
    except PreemptedError as error:
        print(error, flush=True)
        sys.exit(PREEMPTED)
