"""Checkpoints on object storage: uploaded whole, restored by another host onto other devices."""

from __future__ import annotations

import fake_storage
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.host.storage import Mirror, fsspec
from rmas_jax.models import CheckpointError
from rmas_jax.sharding import make_mesh

URL = "fake://bucket/runs/mine/checkpoints/phase"


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv(fake_storage.ROOT, str(tmp_path / "storage"))
    return tmp_path / "storage" / URL.removeprefix("fake://")


@pytest.fixture
def host(tmp_path):
    """Opens the checkpoints on a host of its own."""

    def opened(name, *, keep=2, made_with=None):
        system, root = fsspec.core.url_to_fs(URL)
        mirror = Mirror(URL, tmp_path / name, system, root)
        return open_checkpoints(mirror.local, keep=keep, made_with=made_with, mirror=mirror)

    return opened


def state_of(step, devices):
    mesh = make_mesh(1, devices, devices=jax.devices()[:devices])
    rows = np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))
    return {"rows": jax.device_put(rows, split), "step": jax.device_put(np.int32(step), whole)}


def same(found, expected):
    for ours, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert ours.sharding == wanted.sharding and ours.dtype == wanted.dtype
        np.testing.assert_array_equal(ours, wanted)


def test_another_host_goes_on_on_other_devices(host, bucket):
    with host("first", made_with={"key": 1}) as store:
        assert store.restore_newest(state_of(0, 4)) is None
        for step, loss in ((1, 0.1), (2, None), (3, 0.3), (4, None)):
            store.save(step, state_of(step, 4), validation_loss=loss)
            assert (bucket / f"{step}.safetensors").is_file()  # before training goes on
    kept = sorted(file.stem for file in bucket.glob("*.safetensors"))
    assert kept == ["1", "3", "4"]  # the first is the best one
    with host("second", made_with={"key": 1}) as store:
        step, state = store.restore_newest(state_of(0, 2))
        assert step == 4
        same(state, state_of(4, 2))
        same(store.restore_best(state_of(0, 2)), state_of(1, 2))
    with pytest.raises(CheckpointError, match="key must be that of its checkpoints"):
        host("third", made_with={"key": 2}).__enter__()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-5],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # can be read: the digest differs
        lambda content: content.replace(b"rows", b"tows"),
    ],
    ids=["cut", "flipped", "renamed"],
)
def test_a_damaged_checkpoint_is_left_for_the_one_before(host, bucket, caplog, damage):
    with host("first") as store:
        for step in (1, 2):
            store.save(step, state_of(step, 2))
    damaged = bucket / "2.safetensors"
    damaged.write_bytes(damage(damaged.read_bytes()))
    with host("second") as store:
        step, state = store.restore_newest(state_of(0, 2))
        assert step == 1 and "trying the one before it" in caplog.text
        same(state, state_of(1, 2))
        store.save(2, state_of(2, 2))
    with host("third") as store:
        assert store.restore_newest(state_of(0, 1))[0] == 2
