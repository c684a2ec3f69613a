"""Meshes and the rules by which arrays are split over them."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from rmas_jax import sharding
from rmas_jax.sharding import MESH_AXES, auto_mesh, make_mesh, named_sharding, partition_spec


@pytest.fixture(autouse=True)
def nothing_said():
    sharding._say_not_divided.cache_clear()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=1, fsdp=2, model=4)


def test_mesh(mesh):
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "model": 4}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert set(mesh.devices.flat) == set(jax.devices())
    one = make_mesh(devices=jax.devices()[3:4])
    assert one.devices.item() == jax.devices()[3]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, r"data=1 x fsdp=1 x model=1 takes 1 devices, and there are 8: allowed are"),
        ({"data": 3, "model": 3}, r"takes 9 devices, and there are 8"),
        ({"fsdp": 0}, r"fsdp=0: allowed is a positive integer"),
        ({"model": "8"}, r"model='8': allowed is a positive integer"),
        ({"data": True}, r"data=True"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((64, 32), ("vocab", "embed"), ("model", "fsdp")),
        ((3, 32, 8, 6), ("layers", "embed", "heads", "head_dim"), (None, "fsdp", "model", None)),
        ((3, 32, 4, 6), ("layers", "embed", "kv_heads", "head_dim"), (None, "fsdp", "model", None)),
        ((32, 48), ("embed", "ffn"), ("fsdp", "model")),
        ((32,), (None,), (None,)),
        ((32, 32), ("embed", "embed"), ("fsdp", None)),  # a mesh axis splits one dimension
        ((32, 8, 8), ("embed", "heads", "ffn"), ("fsdp", "model", None)),
        ((), (), ()),
    ],
)
def test_rules(mesh, caplog, shape, axes, spec):
    assert partition_spec(shape, axes, mesh) == PartitionSpec(*spec)
    array = jax.device_put(jnp.zeros(shape), named_sharding(shape, axes, mesh))
    shard = tuple(
        n // (mesh.shape[axis] if axis else 1) for n, axis in zip(shape, spec, strict=True)
    )
    assert array.addressable_shards[0].data.shape == shard
    assert not caplog.records


def test_what_does_not_divide_is_whole_and_is_said_once(mesh, caplog):
    axes = ("layers", "embed", "kv_heads", "head_dim")
    with caplog.at_level(logging.WARNING):
        for layers in (3, 5, 3):
            spec = partition_spec((layers, 32, 2, 6), axes, mesh)
            assert spec == PartitionSpec(None, "fsdp", None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "kv_heads=2 does not divide over model=4: such weights are kept whole on every device of "
        "this axis"
    ]
    partition_spec((61, 31), ("vocab", "embed"), mesh)
    assert len(caplog.records) == 3  # another axis, another size: said too


def test_other_meshes_and_wrong_ranks(caplog):
    explicit = jax.make_mesh((4, 2), ("batch", "model"))
    assert partition_spec((64, 32), ("vocab", "embed"), explicit) == PartitionSpec("model", None)
    assert not caplog.records
    same = auto_mesh(explicit)
    assert set(same.axis_types) == {AxisType.Auto} != set(explicit.axis_types)
    assert (same.devices == explicit.devices).all() and same.axis_names == explicit.axis_names
    with pytest.raises(ValueError, match=r"shape \(4,\) has not the axes \('vocab', 'embed'\)"):
        partition_spec((4,), ("vocab", "embed"), explicit)
