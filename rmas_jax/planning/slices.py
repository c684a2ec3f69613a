"""Devices of a slice that is not at hand: enough to compile for it."""

from __future__ import annotations

import os
import signal
import threading

import jax
from jax.experimental import topologies

from rmas_jax.planning.chips import Slice, SliceError


def slice_devices(wanted: Slice) -> list[jax.Device]:
    """The devices of a slice.

    Those of a TPU are libtpu's, which compile and do not run. Programs for other chips are compiled
    for CPU devices, which differ in fusions and temporaries. To be called before JAX starts a
    backend: it then starts the CPU's alone.

    Raises:
      SliceError: libtpu is not installed or knows no such slice, or another backend has started.
    """
    if wanted.chip.topology is None:
        return _cpu_devices(wanted)
    # A machine without TPUs has no metadata server to ask, and processes may share libtpu.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    sizes = "x".join(map(str, wanted.sizes))
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{wanted.chip.topology}:{sizes}"
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise SliceError(
            f"a slice must be one that libtpu knows (pip install 'rmas_jax[tpu]'), got {wanted}: "
            f"{error}"
        ) from None
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # libtpu's handlers print its stack
            signal.signal(number, signal.getsignal(number))
    return list(found.devices)


def _cpu_devices(wanted: Slice) -> list[jax.Device]:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted.devices)
    except RuntimeError:  # a backend has started: its devices may be enough
        pass
    devices = jax.devices("cpu")
    if len(devices) < wanted.devices:
        raise SliceError(
            f"a slice of this process must have at most {len(devices)} devices, got {wanted}"
        )
    return devices[: wanted.devices]
