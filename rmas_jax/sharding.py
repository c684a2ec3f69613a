"""Meshes, and which mesh axis each logical axis of an array is split over.

A mesh has three axes. The batch is split over `data` and `fsdp`; weights are split over `fsdp` (the
width, gathered where a layer needs it) and over `model` (heads, feed-forward, vocabulary, each
device computing its part). The axes are `Auto`: the compiler finds out how to move activations, and
model code says nothing of meshes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "model")
# Logical axis -> mesh axis. An axis that is not here is on every device.
RULES = {
    "vocab": "model",
    "embed": "fsdp",
    "heads": "model",
    "kv_heads": "model",
    "ffn": "model",
}

_log = logging.getLogger(__name__)


def make_mesh(
    data: int = 1, fsdp: int = 1, model: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `model`, over all devices unless told.

    Raises:
      ValueError: a size is no positive integer, or the sizes do not fit the number of devices.
    """
    sizes = dict(zip(MESH_AXES, (data, fsdp, model), strict=True))
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name}={size!r}: allowed is a positive integer")
    devices = jax.devices() if devices is None else list(devices)
    needed = math.prod(sizes.values())
    if needed != len(devices):
        wanted = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"the mesh {wanted} takes {needed} devices, and there are {len(devices)}: "
            "allowed are sizes whose product is the number of devices"
        )
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices and names with `Auto` axes; `jax.make_mesh` makes explicit ones."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def partition_spec(
    shape: Sequence[int], logical_axes: Sequence[str | None], mesh: Mesh
) -> PartitionSpec:
    """How an array is split: by RULES, where the mesh has the axis and its size divides.

    A dimension that does not divide is kept whole, and the log says so, once for each kind.

    Args:
      shape: of the array.
      logical_axes: a name or None per dimension.
      mesh: its axes may be any; those without a rule hold copies.
    """
    if len(shape) != len(logical_axes):
        raise ValueError(f"shape {tuple(shape)} has not the axes {tuple(logical_axes)}")
    spec: list[str | None] = []
    for size, logical in zip(shape, logical_axes, strict=True):
        axis = RULES.get(logical) if logical is not None else None
        if axis not in mesh.shape or axis in spec:  # a mesh axis splits one dimension
            axis = None
        elif size % mesh.shape[axis]:
            _say_not_divided(logical, size, axis, mesh.shape[axis])
            axis = None
        spec.append(axis)
    return PartitionSpec(*spec)


def named_sharding(
    shape: Sequence[int], logical_axes: Sequence[str | None], mesh: Mesh
) -> NamedSharding:
    """`partition_spec` on its mesh."""
    return NamedSharding(mesh, partition_spec(shape, logical_axes, mesh))


@functools.cache  # says each thing once
def _say_not_divided(logical: str, size: int, axis: str, devices: int) -> None:
    _log.warning(
        "%s=%d does not divide over %s=%d: such weights are kept whole on every device of this "
        "axis",
        logical,
        size,
        axis,
        devices,
    )
