"""Meshes, and the mesh axis that splits each logical axis of an array.

A mesh has three axes. The batch is split over `data` and `fsdp`; weights are split over `fsdp` (the
width, gathered where a layer needs it) and over `model` (heads, feed-forward, vocabulary, each
device computing its part). Trained arrays, the links and their optimiser state, are split over
`fsdp` where they are large. The axes are `Auto`: the compiler chooses the shardings of activations,
and model code contains no meshes.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rmas_jax.host.processes import barrier

MESH_AXES = ("data", "fsdp", "model")
# Logical axis -> mesh axis. Other axes are whole on every device.
RULES = {
    "vocab": "model",
    "embed": "fsdp",
    "heads": "model",
    "kv_heads": "model",
    "ffn": "model",
}
BATCH_AXES = ("data", "fsdp")
SPLIT_STATE = 2**20  # elements of the smallest array of the train state that is split

_log = logging.getLogger(__name__)


def make_mesh(
    data: int = 1, fsdp: int = 1, model: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `model`, by default over all devices.

    Several processes make it together, and are connected over it.

    Raises:
      ValueError: a size is not a positive integer, or their product is not the number of devices.
    """
    sizes = dict(zip(MESH_AXES, (data, fsdp, model), strict=True))
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    devices = jax.devices() if devices is None else list(devices)
    needed = math.prod(sizes.values())
    if needed != len(devices):
        wanted = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"the product of mesh sizes must be the number of devices ({len(devices)}), got "
            f"{wanted} = {needed}"
        )
    mesh = jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )
    if jax.process_count() > 1:
        connect(mesh)
    return mesh


def connect(mesh: Mesh) -> None:
    """Runs a sum over every set of mesh axes, in all processes at the same time.

    On CPUs the first collective of a group of devices waits at most 30 seconds for all its
    processes (Gloo), and on a busy machine these compile the same program at more different
    speeds. Later collectives of the group use its connection, without this limit.
    """
    split = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    ones = jax.make_array_from_callback(
        mesh.devices.shape,
        NamedSharding(mesh, PartitionSpec(*mesh.axis_names)),
        lambda index: np.ones(mesh.devices.shape, np.float32)[index],
    )
    programs = []
    for count in range(1, len(split) + 1):
        for summed in itertools.combinations(split, count):
            kept = (None if axis in summed else axis for axis in mesh.axis_names)
            total = jax.shard_map(
                functools.partial(jax.lax.psum, axis_name=summed),
                mesh=mesh,
                in_specs=PartitionSpec(*mesh.axis_names),
                out_specs=PartitionSpec(*kept),
            )
            programs.append(jax.jit(total).lower(ones).compile())
    for program in programs:
        barrier()
        jax.block_until_ready(program(ones))


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices and names with `Auto` axes; those of `jax.make_mesh` are explicit."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def partition_spec(
    shape: Sequence[int], logical_axes: Sequence[str | None], mesh: Mesh
) -> PartitionSpec:
    """The split of an array by RULES, where the mesh has the axis and its size divides.

    A dimension that does not divide stays whole, with one warning for each kind.

    Args:
      shape: of the array.
      logical_axes: a name or None per dimension.
      mesh: with any axes; those without a rule hold copies.
    """
    if len(shape) != len(logical_axes):
        raise ValueError(f"shape must have the axes {tuple(logical_axes)}, got {tuple(shape)}")
    spec: list[str | None] = []
    for size, logical in zip(shape, logical_axes, strict=True):
        axis = RULES.get(logical) if logical is not None else None
        if axis not in mesh.shape or axis in spec:  # a mesh axis splits one dimension
            axis = None
        elif size % mesh.shape[axis]:
            _warn_not_divided(logical, size, axis, mesh.shape[axis])
            axis = None
        spec.append(axis)
    return PartitionSpec(*spec)


def named_sharding(
    shape: Sequence[int], logical_axes: Sequence[str | None], mesh: Mesh
) -> NamedSharding:
    """`partition_spec` on its mesh."""
    return NamedSharding(mesh, partition_spec(shape, logical_axes, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | None) -> int:
    """Parts into which the rows of a batch are split."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(rows: int, mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [B, ...]: whole on every device where B does not divide."""
    divides = rows % batch_shards(mesh) == 0
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES)) if divides else replicated(mesh)


def put_batch(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays [B, ...], the same in every process, with their rows split over the devices.

    A batch that does not divide is whole on every device; without a mesh, on the default device.
    """
    if mesh is None:
        return jax.device_put(tree)

    def put(array: np.ndarray) -> jax.Array:
        # With the full shape, every process takes the rows of its devices from all rows.
        sharding = batch_sharding(array.shape[0], mesh)
        return jax.make_array_from_process_local_data(sharding, array, array.shape)

    return jax.tree.map(put, tree)


def abstract_batch(tree: Any, mesh: Mesh | None) -> Any:
    """`put_batch` with a `jax.ShapeDtypeStruct` for each array, of arrays or shapes."""

    def shape(array: Any) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else batch_sharding(array.shape[0], mesh)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(shape, tree)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """The shapes of arrays, with the shardings of a tree like it; None: without any."""

    def shape(array: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, *(() if shardings is None else (shardings,)))


def put_whole(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays, the same in every process, whole on every device; the default one without a mesh.

    Raises:
      AssertionError: processes have different values.
    """
    return jax.device_put(tree, None if mesh is None else replicated(mesh))


def state_shardings(state: Any, mesh: Mesh | None) -> Any:
    """The sharding of each array of a train state, as a tree like `state`; None without a mesh.

    An array of at least `SPLIT_STATE` elements is split over `fsdp` along its longest dimension
    that divides; any other is whole on every device.
    """
    if mesh is None:
        return None

    def rule(array: Any) -> NamedSharding:
        devices = mesh.shape["fsdp"]
        longest = max(
            (i for i, size in enumerate(array.shape) if size % devices == 0),
            key=lambda i: array.shape[i],
            default=None,
        )
        if longest is None or math.prod(array.shape) < SPLIT_STATE:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(rule, state)


def to_host(tree: Any) -> Any:
    """Whole arrays as numpy, in every process; all processes call it together."""

    def whole(array: Any) -> Any:
        # A gather would concatenate arrays that are local to each process.
        is_shared = isinstance(array, jax.Array) and not array.is_fully_addressable
        return multihost_utils.process_allgather(array, tiled=True) if is_shared else array

    return jax.device_get(jax.tree.map(whole, tree))


@functools.cache  # each warning once
def _warn_not_divided(logical: str, size: int, axis: str, devices: int) -> None:
    _log.warning(
        "%s=%d does not divide over %s=%d: such weights are whole on every device of this axis",
        logical,
        size,
        axis,
        devices,
    )
