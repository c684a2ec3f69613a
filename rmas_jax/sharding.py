"""Meshes, the mesh axes that split each logical axis of an array, and the split of batches.

A mesh has three axes. The batch is split over `data` and `fsdp`, weights over `model` (heads,
feed-forward, vocabulary) and `fsdp`. Trained arrays, the links and their optimiser state, are split
over `fsdp` where they are large. Where activations lie, `rmas_jax.partition` says.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rmas_jax.host.processes import barrier

MESH_AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")
# Logical axis of a weight -> mesh axes that split it where they divide it. A mesh axis splits one
# dimension of an array, that of the first rule. Other axes are whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "vocab": ("model", "fsdp"),
    "ffn": ("model", "fsdp"),
    "heads": ("model",),
    "kv_heads": ("model",),
    "embed": ("fsdp",),
}
SPLIT_STATE = 2**20  # elements of the smallest array of the train state that is split

_log = logging.getLogger(__name__)


def make_mesh(
    data: int = 1, fsdp: int = 1, model: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `model`, by default over all devices.

    Several processes make it together, and are connected over it.

    Raises:
      ValueError: a size is not a positive integer, their product is not the number of devices, or
        these are of several slices.
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
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        raise ValueError(f"the devices of a mesh must be of one slice, got {len(slices)} slices")
    # Sizes that are no product of a slice's axes, such as 16 of 4x8x8, split one of these;
    # `jax.make_mesh` refuses them.
    placed = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    mesh = Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
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
    shape: Sequence[int],
    logical_axes: Sequence[str | None],
    mesh: Mesh,
    rules: Mapping[str, tuple[str, ...]] = RULES,
    *,
    full_shape: Sequence[int] | None = None,
) -> PartitionSpec:
    """The split of an array by rules, where the mesh has an axis and its size divides.

    Args:
      shape: of the array.
      logical_axes: a name or None per dimension.
      mesh: with any axes; those without a rule hold copies.
      rules: see `RULES`.
      full_shape: of an array that shares its split with this one; dimensions of another size, as
        of int8 scales, are whole.
    """
    if len(shape) != len(logical_axes):
        raise ValueError(f"shape must have the axes {tuple(logical_axes)}, got {tuple(shape)}")
    full = tuple(shape if full_shape is None else full_shape)
    split = split_axes(full, logical_axes, mesh, rules)
    return PartitionSpec(
        *(axes or None if n == m else None for axes, n, m in zip(split, shape, full, strict=True))
    )


def split_axes(
    shape: Sequence[int],
    logical_axes: Sequence[str | None],
    mesh: Mesh,
    rules: Mapping[str, tuple[str, ...]],
) -> list[tuple[str, ...]]:
    """The mesh axes that split each dimension, by `partition_spec`."""
    split: list[tuple[str, ...]] = [()] * len(shape)
    taken: set[str] = set()
    for name, axes in rules.items():
        for place, logical in enumerate(logical_axes):
            if logical != name:
                continue
            rest = shape[place]
            for axis in axes:
                devices = mesh.shape.get(axis, 1)
                if devices > 1 and axis not in taken and not rest % devices:
                    rest //= devices
                    split[place] += (axis,)
                    taken.add(axis)
    return split


def named_sharding(
    shape: Sequence[int],
    logical_axes: Sequence[str | None],
    mesh: Mesh,
    *,
    full_shape: Sequence[int] | None = None,
) -> NamedSharding:
    """The sharding of a weight, or by `full_shape` of its int8 scales, see `partition_spec`.

    Warns, once for each kind, of a mesh axis that divides none of its dimensions with a rule.
    """
    spec = partition_spec(shape, logical_axes, mesh, full_shape=full_shape)
    shape = shape if full_shape is None else full_shape
    taken = {axis for axes in split_axes(shape, logical_axes, mesh, RULES) for axis in axes}
    sizes = dict(zip(logical_axes, shape, strict=True))
    # The last rule is the last that could have split: one warning for each mesh axis.
    wanted = {axis: name for name, axes in RULES.items() if name in sizes for axis in axes}
    for axis, name in wanted.items():
        if mesh.shape.get(axis, 1) > 1 and axis not in taken:
            _warn_not_divided(name, sizes[name], axis, mesh.shape[axis])
    return NamedSharding(mesh, spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | None) -> int:
    """Parts into which the rows of a batch are split."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(rows: int, mesh: Mesh) -> NamedSharding:
    """The split of a batch over the devices; whole on every one if its rows do not divide."""
    divides = rows % batch_shards(mesh) == 0
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES)) if divides else replicated(mesh)


def local_rows(rows: int, mesh: Mesh | None) -> np.ndarray:
    """Numbers, ascending, of the rows of a batch that this process's devices hold."""
    if mesh is None:
        return np.arange(rows)
    held = batch_sharding(rows, mesh).addressable_devices_indices_map((rows,))
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held.values()]))


def put_batch(tree: Any, mesh: Mesh | None, *, rows: int | None = None) -> Any:
    """Host arrays [B, ...] with their rows split over the devices of all processes.

    A batch that does not divide is whole on every device; without a mesh, on the default device.

    Args:
      tree: all rows, the same in every process, or the `local_rows` of each one.
      mesh: of all processes.
      rows: B; None where the arrays have all rows.
    """
    if mesh is None:
        return jax.device_put(tree)

    def put(array: np.ndarray) -> jax.Array:
        count = len(array) if rows is None else rows
        here = np.arange(count) if rows is None else local_rows(count, mesh)

        def of_device(index: Any) -> np.ndarray:  # a slice per axis
            first, stop, _ = index[0].indices(count)
            return array[slice(*np.searchsorted(here, (first, stop)))]

        shape, sharding = (count, *array.shape[1:]), batch_sharding(count, mesh)
        return jax.make_array_from_callback(shape, sharding, of_device)

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
