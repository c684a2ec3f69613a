"""One of several processes, of which a test takes one away: it sums over all devices, or waits.

python tests/heartbeat_worker.py PROCESS PROCESSES PORT HEARTBEAT_S sums|waits
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.host import processes
from rmas_jax.sharding import make_mesh


def main() -> None:
    process, count, port, heartbeat_s = map(int, sys.argv[1:5])
    processes.HEARTBEAT_S = heartbeat_s
    jax.config.update("jax_num_cpu_devices", 2)
    processes.join(f"127.0.0.1:{port}", count, process)
    mesh = make_mesh(2 * count)
    split = NamedSharding(mesh, PartitionSpec("data"))
    ones = jax.make_array_from_callback((2 * count,), split, lambda _: np.ones(1))
    total = jax.jit(lambda x: x.sum())
    print("ready", flush=True)
    if sys.argv[5] == "waits" and process != 1:
        processes.barrier()  # for the one that never comes
    while True:
        if sys.argv[5] == "sums":
            assert float(total(ones)) == 2 * count
        time.sleep(0.05)


if __name__ == "__main__":
    main()
