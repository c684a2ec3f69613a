"""Meshes and the rules by which arrays are split over them."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from rmas_jax import sharding
from rmas_jax.sharding import (
    MESH_AXES,
    auto_mesh,
    make_mesh,
    named_sharding,
    partition_spec,
    put_batch,
    state_shardings,
    to_host,
)


@pytest.fixture(autouse=True)
def nothing_said():
    sharding._warn_not_divided.cache_clear()


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
        ({}, r"number of devices \(8\), got data=1 x fsdp=1 x model=1 = 1$"),
        ({"data": 3, "model": 3}, r"number of devices \(8\), got .* = 9$"),
        ({"fsdp": 0}, r"fsdp must be a positive integer, got 0"),
        ({"model": "8"}, r"model must be a positive integer, got .8."),
        ({"data": True}, r"data must be a positive integer, got True"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What meshes ask of a TPU."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"


def chips(*sizes):
    return [Chip(i, at[::-1]) for i, at in enumerate(np.ndindex(*sizes[::-1]))]


def test_a_mesh_splits_an_axis_of_a_slice_where_no_product_of_axes_fits():
    mesh = make_mesh(16, 16, devices=chips(4, 8, 8))
    assert dict(mesh.shape) == {"data": 16, "fsdp": 16, "model": 1}
    assert len({chip.id for chip in mesh.devices.flat}) == 256
    for line in (mesh.devices[0, :, 0], mesh.devices[:, 0, 0]):  # blocks of neighbours
        spans = [{chip.coords[axis] for chip in line} for axis in range(3)]
        assert np.prod([len(span) for span in spans]) == 16


def test_a_mesh_of_several_slices_is_refused():
    devices = [*chips(2, 2, 1), *(dataclasses.replace(x, slice_index=1) for x in chips(2, 2, 1))]
    with pytest.raises(ValueError, match="of one slice, got 2 slices"):
        make_mesh(8, devices=devices)


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((64, 32), ("vocab", "embed"), (("model", "fsdp"), None)),
        ((60, 32), ("vocab", "embed"), ("model", "fsdp")),  # the next dimension takes an axis
        ((62, 32), ("vocab", "embed"), ("fsdp", None)),
        ((3, 32, 8, 6), ("layers", "embed", "heads", "head_dim"), (None, "fsdp", "model", None)),
        ((3, 32, 4, 6), ("layers", "embed", "kv_heads", "head_dim"), (None, "fsdp", "model", None)),
        ((32, 48), ("embed", "ffn"), (None, ("model", "fsdp"))),
        ((32,), (None,), (None,)),
        ((32, 32), ("embed", "embed"), ("fsdp", None)),  # a mesh axis splits one dimension
        ((32, 8, 8), ("embed", "heads", "ffn"), (None, None, ("model", "fsdp"))),
        ((), (), ()),
    ],
)
def test_rules(mesh, shape, axes, spec):
    assert partition_spec(shape, axes, mesh) == PartitionSpec(*spec)
    placed = named_sharding(shape, axes, mesh)
    assert placed.spec == PartitionSpec(*spec)
    jax.device_put(jnp.zeros(shape), placed)  # it divides


def test_what_does_not_divide_is_whole_and_is_said_once(mesh, caplog):
    axes = ("layers", "embed", "kv_heads", "head_dim")
    with caplog.at_level(logging.WARNING):
        for layers in (3, 5, 3):
            placed = named_sharding((layers, 32, 2, 6), axes, mesh)
            assert placed.spec == PartitionSpec(None, "fsdp", None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "kv_heads=2 does not divide over model=4: such weights are whole on every device of "
        "this axis"
    ]
    named_sharding((61, 31), ("vocab", "embed"), mesh)
    assert len(caplog.records) == 3  # another axis, another size: said too


def test_other_meshes_and_wrong_ranks(caplog):
    explicit = jax.make_mesh((4, 2), ("batch", "model"))
    assert partition_spec((64, 32), ("vocab", "embed"), explicit) == PartitionSpec("model", None)
    assert not caplog.records
    same = auto_mesh(explicit)
    assert set(same.axis_types) == {AxisType.Auto} != set(explicit.axis_types)
    assert (same.devices == explicit.devices).all() and same.axis_names == explicit.axis_names
    with pytest.raises(
        ValueError, match=r"shape must have the axes \('vocab', 'embed'\), got \(4,\)"
    ):
        partition_spec((4,), ("vocab", "embed"), explicit)


def test_rows_of_a_batch_are_split_where_they_divide():
    mesh = make_mesh(data=2, fsdp=2, model=2)
    batch = {"whole": np.arange(8).reshape(4, 2), "odd": np.arange(6).reshape(3, 2)}
    placed = put_batch(batch, mesh)
    assert placed["whole"].addressable_shards[0].data.shape == (1, 2)
    assert placed["odd"].sharding.is_fully_replicated
    for name, array in to_host(placed).items():
        np.testing.assert_array_equal(array, batch[name])
    assert len(put_batch(batch, None)["whole"].sharding.device_set) == 1


def test_large_arrays_of_a_train_state_are_split_over_fsdp(mesh, monkeypatch):
    monkeypatch.setattr(sharding, "SPLIT_STATE", 12)
    shapes = {"longest": (3, 4), "odd": (3, 5), "small": (2, 2), "scalar": (), "first": (6, 2)}
    state = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: found.spec for name, found in state_shardings(state, mesh).items()}
    whole = PartitionSpec()
    assert specs == {
        "longest": PartitionSpec(None, "fsdp"),
        "odd": whole,
        "small": whole,
        "scalar": whole,
        "first": PartitionSpec("fsdp"),
    }
    assert state_shardings(state, None) is None
