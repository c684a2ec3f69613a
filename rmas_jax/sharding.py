"""Meshes, the mesh axes that split each logical axis of an array, and how weights meet activations.

A mesh has three axes. The batch is split over `data` and `fsdp`, weights over `model` (heads,
feed-forward, vocabulary) and `fsdp`. Trained arrays, the links and their optimiser state, are split
over `fsdp` where they are large. Model code states where its activations lie by logical axes, which
a `Partition` resolves; without a mesh it states nothing.

The axes are `Auto`, with a constraint wherever a layer, a scan carry or a stage begins: explicit
axes would need an `out_sharding` in every gather and contraction, also in flax and qwix, and would
change the programs without a mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
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
    split = _axes(full, logical_axes, mesh, rules)
    return PartitionSpec(
        *(axes or None if n == m else None for axes, n, m in zip(split, shape, full, strict=True))
    )


def _axes(
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
    taken = {axis for axes in _axes(shape, logical_axes, mesh, RULES) for axis in axes}
    sizes = dict(zip(logical_axes, shape, strict=True))
    # The last rule is the last that could have split: one warning for each mesh axis.
    wanted = {axis: name for name, axes in RULES.items() if name in sizes for axis in axes}
    for axis, name in wanted.items():
        if mesh.shape.get(axis, 1) > 1 and axis not in taken:
            _warn_not_divided(name, sizes[name], axis, mesh.shape[axis])
    return NamedSharding(mesh, spec)


class Policy(NamedTuple):
    """How weights meet activations."""

    meaning: str
    rows: tuple[str, ...]  # mesh axes that split the rows of a batch between layers
    weights: tuple[str, ...]  # mesh axes that split weights where they are used
    at_start: bool = False  # weights take this place when a phase begins, not in each layer


POLICIES = {
    "gather": Policy(
        "each layer's weights are gathered over fsdp at their use", BATCH_AXES, ("model",)
    ),
    "stay": Policy("weights stay, activations move to them", ("data",), ("model", "fsdp")),
    "replicate": Policy(
        "all weights are gathered over fsdp once, when a phase begins", BATCH_AXES, ("model",), True
    ),
}


class Policies(NamedTuple):
    """The policy of each phase, a name in `POLICIES`."""

    reading: str = "gather"  # prompts and texts, without a gradient
    thinking: str = "stay"  # latent steps
    writing: str = "stay"  # tokens
    training: str = "gather"  # prompts and texts, with a gradient


DEFAULT_POLICIES = Policies()


@dataclasses.dataclass(frozen=True)
class Partition:
    """The place of a model's arrays: a mesh, and how weights meet activations in a phase.

    Hashable, so that it is a static part of a decoder. Logical axes of activations:

    | axis | split over |
    |---|---|
    | batch | `data` and `fsdp`: caches, latents, tokens |
    | rows | `Policy.rows`: activations between layers |
    | samples | all mesh axes: logits that a sampler reads |
    | lookups | `data`: ids, while each device looks up its columns of the embedding |
    | columns | `fsdp`: those columns |
    | heads, ffn, vocab, embed | as weights where they are used, `Policy.weights` |
    """

    mesh: Mesh | None = None
    policies: Policies = DEFAULT_POLICIES
    phase: str = "reading"

    @property
    def is_one_device(self) -> bool:
        """Whether nothing is split."""
        return self.mesh is None or self.mesh.size == 1

    @property
    def policy(self) -> Policy:
        """The policy of the phase."""
        return POLICIES[getattr(self.policies, self.phase)]

    @functools.cached_property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """As `RULES`, for weights and activations where they are used."""
        policy = self.policy
        weights = {
            name: tuple(axis for axis in axes if axis in policy.weights)
            for name, axes in RULES.items()
        }
        return weights | {
            "batch": BATCH_AXES,
            "rows": policy.rows,
            "samples": MESH_AXES,
            "lookups": ("data",),
            "columns": ("fsdp",),
        }

    def during(self, phase: str) -> Partition:
        """The same in another phase."""
        return dataclasses.replace(self, phase=phase)

    def constrain(
        self, x: jax.Array, *logical_axes: str | None, full_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """`x`, split along its logical axes, a name or None per dimension; `x` without a mesh.

        A dimension that does not divide is whole; `full_shape`: see `partition_spec`.
        """
        if self.mesh is None or self.is_one_device or not x.size:
            return x
        spec = partition_spec(x.shape, logical_axes, self.mesh, self.rules, full_shape=full_shape)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def whole(self, tree: Any) -> Any:
        """Arrays, whole on every device."""
        return jax.tree.map(lambda x: self.constrain(x, *(None,) * x.ndim), tree)

    def parts(self, logical: str, size: int) -> int:
        """Parts into which a dimension of this size is split."""
        if self.mesh is None:
            return 1
        return math.prod(self.mesh.shape[axis] for axis in self.axes((size,), logical)[0])

    def axes(self, shape: Sequence[int], *logical_axes: str | None) -> list[tuple[str, ...]]:
        """The mesh axes that split each dimension of an array on a mesh."""
        assert self.mesh is not None
        return _axes(shape, logical_axes, self.mesh, self.rules)


ONE_DEVICE = Partition()


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | None) -> int:
    """Parts into which the rows of a batch are split."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def put_batch(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays [B, ...], the same in every process, with their rows split over the devices.

    A batch that does not divide is whole on every device; without a mesh, on the default device.
    """
    if mesh is None:
        return jax.device_put(tree)

    def put(array: np.ndarray) -> jax.Array:
        divides = array.shape[0] % batch_shards(mesh) == 0
        sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES)) if divides else replicated(mesh)
        # With the full shape, every process takes the rows of its devices from all rows.
        return jax.make_array_from_process_local_data(sharding, array, array.shape)

    return jax.tree.map(put, tree)


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
