"""One of two processes that sum over each axis of a mesh; the second one comes late to each sum."""

from __future__ import annotations

import sys
import time
from unittest import mock

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax import sharding

GLOO_WAIT_S = 30  # for the processes of a group of devices that is not connected yet


def main() -> None:
    """Arguments: number of this process, port, seconds by which the second is late, connected."""
    process, port, late_s, is_connected = map(int, sys.argv[1:])
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    if is_connected:
        mesh = sharding.make_mesh(2, 4, 1)
    else:
        with mock.patch.object(sharding, "connect"):
            mesh = sharding.make_mesh(2, 4, 1)
    rows = np.arange(8.0).reshape(2, 4)
    split = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
    x = jax.make_array_from_callback(rows.shape, split, lambda index: rows[index])
    for axis in (0, 1, None):
        if process == 1:
            time.sleep(late_s)
        total = jax.jit(lambda x, axis=axis: x.sum(axis))(x)
        mine = np.asarray(total.addressable_shards[0].data)
        print("sum", axis, mine.ravel()[0], flush=True)


if __name__ == "__main__":
    main()
