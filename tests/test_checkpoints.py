"""Which checkpoints stay, and that what is saved in the background is what was there then."""

from __future__ import annotations

import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from rmas_jax.checkpoints import open_checkpoints, state_digest
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.links import Links
from rmas_jax.models import CheckpointError
from rmas_jax.sharding import make_mesh


def state_of(step):
    return {"a": jnp.full((3, 2), step, jnp.float32), "step": jnp.asarray(step)}


def test_the_newest_and_the_best_stay(tmp_path):
    losses = {1: 0.9, 2: 0.1, 3: None, 4: 0.5, 5: None, 6: None}
    with open_checkpoints(tmp_path, keep=2) as store:
        assert store.steps() == () and store.best_step() is None
        for step, loss in losses.items():
            store.save(step, state_of(step), validation_loss=loss)
        assert store.steps() == (2, 5, 6)
        assert store.best_step() == 2
    with open_checkpoints(tmp_path, keep=2) as store:  # the losses are known to the next run
        store.save(7, state_of(7), validation_loss=0.05)
        store.save(8, state_of(8))
        store.save(9, state_of(9))
        assert store.steps() == (7, 8, 9)
        assert store.best_step() == 7
        np.testing.assert_array_equal(store.restore(7, state_of(0))["a"], state_of(7)["a"])
        step, newest = store.restore_newest(state_of(0))
        assert step == 9 == newest["step"]


def damage(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


def test_after_a_fallback_new_checkpoints_stay_and_the_damaged_one_goes(tmp_path):
    with open_checkpoints(tmp_path, keep=1) as store:
        store.save(50, state_of(50), validation_loss=0.1)
        store.save(100, state_of(100), validation_loss=0.2)
    damage(tmp_path / "100")
    with open_checkpoints(tmp_path, keep=1) as store:
        assert store.restore_newest(state_of(0))[0] == 50
        assert store.steps() == (50,) and not (tmp_path / "100").exists()
        store.save(70, state_of(70))
        assert store.steps() == (50, 70) and store.best_step() == 50
    with open_checkpoints(tmp_path, keep=1) as store:  # what was removed is not in the record
        assert store.restore_newest(state_of(0))[0] == 70
        assert store.losses == {50: 0.1}


def test_checkpoints_that_cannot_be_read_are_no_new_start(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as store:
        assert store.restore_newest(state_of(0)) is None
        store.save(1, state_of(1))
        store.save(2, state_of(2))
    for step in ("1", "2"):
        damage(tmp_path / step)
    with (
        open_checkpoints(tmp_path, keep=2) as store,
        pytest.raises(CheckpointError, match=rf"{tmp_path}: all checkpoints are damaged \(1, 2\)"),
    ):
        store.restore_newest(state_of(0))
    assert (tmp_path / "1").exists() and (tmp_path / "2").exists()


def test_one_process_alone_finds_every_damaged_file_of_arrays(tmp_path):
    with open_checkpoints(tmp_path, keep=1) as store:
        store.save(1, {"a": jnp.asarray(np.random.default_rng(0).normal(size=(300, 200)))})
        assert store.steps() == (1,)
        state = tmp_path / "1" / "state"
        for file in (state / "manifest.ocdbt", *state.glob("**/d/*")):
            store._check(1)
            before = file.read_bytes()
            file.write_bytes(before[: len(before) // 2])
            with pytest.raises(Exception, match=r"(?i)ocdbt|corrupt|data|size"):
                store._check(1)
            file.write_bytes(before)


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    with open_checkpoints(tmp_path, keep=9) as store:
        for step, loss in {1: float("nan"), 2: 0.5, 3: float("-inf"), 4: 0.4}.items():
            assert store.best_step() == {3: 2, 4: 2}.get(step)
            store.save(step, state_of(step), validation_loss=loss)
        assert store.best_step() == 4


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jnp.zeros((2048, 1024))
    with open_checkpoints(tmp_path, keep=9) as store:
        for step in range(4):
            store.save(step, {"a": state})
            for _ in range(3):
                state = add(state)
        for step in range(4):
            kept = store.restore(step, {"a": state})["a"]
            assert kept.min() == kept.max() == 3 * step


def test_links_come_back_from_their_file(tmp_path):
    links = Links({"a": {"w": jnp.arange(3.0)}}, {"a->b": {"w": jnp.ones((2, 2))}})
    save_links(tmp_path / "folder" / "links.safetensors", links)
    back = load_links(tmp_path / "folder" / "links.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(links)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(links), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["links.safetensors"]


def random_state(seed=0):
    random = np.random.default_rng(seed)
    return {"a": jnp.asarray(random.normal(size=(64, 33)), jnp.float32), "step": jnp.asarray(seed)}


def flip(file, bit):
    raw = bytearray(file.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)


def flipped(state, name, index, bit):
    """A copy with one bit of one number flipped."""
    array = np.array(state[name])
    array.reshape(-1).view(np.uint8)[index] ^= 1 << bit
    return state | {name: jnp.asarray(array)}


def test_the_digest_of_a_state_changes_with_every_bit_and_not_with_the_mesh():
    mixed = {
        "bf16": jnp.arange(15, dtype=jnp.bfloat16).reshape(3, 5),
        "f32": jnp.linspace(0, 1, 64, dtype=jnp.float32).reshape(8, 2, 4),
        "bool": jnp.asarray([True, False]),
        "step": jnp.asarray(3),
        "key": jax.random.key(5),
    }
    digest = state_digest(mixed)
    sharding = NamedSharding(make_mesh(2, 2, 1, devices=jax.devices()[:4]), P(("data", "fsdp")))
    assert state_digest(mixed | {"f32": jax.device_put(mixed["f32"], sharding)}) == digest
    others = [
        flipped(mixed, name, index, bit)
        for name in ("bf16", "f32", "step")
        for index in range(mixed[name].nbytes)
        for bit in (0, 3, 7)
    ]
    others.append(mixed | {"bool": ~mixed["bool"]})
    others.append(mixed | {"key": jax.random.key(6)})
    others.append(mixed | {"bf16": mixed["bf16"][::-1]})  # the same numbers at other places
    assert all(state_digest(other) != digest for other in others)


def test_a_flipped_bit_that_can_be_read_falls_back(tmp_path, caplog, monkeypatch):
    with open_checkpoints(tmp_path, keep=2) as store:
        for step in (1, 2):
            store.save(step, random_state(step))
    original = ocp.training.Checkpointer.load
    monkeypatch.setattr(
        ocp.training.Checkpointer,
        "load",
        lambda self, step, like: (
            flipped(original(self, step, like), "a", 1000, 6)
            if step == 2
            else original(self, step, like)
        ),
    )
    with open_checkpoints(tmp_path, keep=2) as store:
        step, state = store.restore_newest(random_state())
    assert step == 1
    np.testing.assert_array_equal(state["a"], random_state(1)["a"])
    assert "checkpoint 2 is damaged (its checksum differs" in caplog.text


DAMAGES = {
    "flipped": lambda file: flip(file, 4 * file.stat().st_size),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_befalls_a_file_of_a_checkpoint_its_numbers_are_right(tmp_path, kind):
    """Some files are not needed to read the arrays: then the checkpoint counts."""
    made = tmp_path / "made"
    with open_checkpoints(made, keep=2) as store:
        for step in (1, 2):
            store.save(step, random_state(step))
    files = [file.relative_to(made) for file in (made / "2").rglob("*") if file.is_file()]
    fallbacks = set()
    for file in files:
        copy = shutil.copytree(made, tmp_path / "copy")
        if (copy / file).stat().st_size or kind != "flipped":
            DAMAGES[kind](copy / file)
        with open_checkpoints(copy, keep=2) as store:
            step, state = store.restore_newest(random_state())
        np.testing.assert_array_equal(state["a"], random_state(step)["a"])
        if step == 1:
            fallbacks.add(file.name)
            assert not (copy / "2").exists()
        shutil.rmtree(copy)
    assert "manifest.ocdbt" in fallbacks


def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as store:
        store.save(1, state_of(1))
    pipe = tmp_path / "1" / "_CHECKPOINT_METADATA"
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match=rf"{pipe}: must be a regular file; put back"):
        open_checkpoints(tmp_path, keep=2).__enter__()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("", "must be JSON"),
        ('{"made_with": {}, "validation', "must be JSON"),
        ("[]", "must be a JSON object, got a list"),
        ("{}", "must have made_with, and validation_loss"),
        ('{"made_with": 3, "validation_loss": {}}', "must have made_with, and validation_loss"),
        ('{"made_with": {}, "validation_loss": {"1": "low"}}', "validation_loss by step"),
        ('{"made_with": {}, "validation_loss": [0.5]}', "validation_loss by step"),
        ('{"made_with": {}, "validation_loss": {}, "crc32": "0"}', "its checksum must be "),
        (os.mkfifo, "must be a regular file, got a pipe"),
        (os.mkdir, "must be a regular file, got a folder"),
    ],
)
def test_a_damaged_record_is_one_message_with_the_way_out(tmp_path, content, words):
    with open_checkpoints(tmp_path, keep=2) as store:
        store.save(1, state_of(1), validation_loss=0.5)
    record = tmp_path / "record.json"
    record.unlink()
    if isinstance(content, str):
        record.write_text(content)
    elif content is not None:
        content(record)
    with pytest.raises(CheckpointError, match=re.escape(f"{record}: ")) as caught:
        open_checkpoints(tmp_path, keep=2).__enter__()
    assert words in str(caught.value) and f"or remove {tmp_path} and run again" in str(caught.value)


def test_checkpoints_of_before_are_read_without_digests(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as store:
        store.save(1, state_of(1), validation_loss=0.5)
    (tmp_path / "record.json").write_text('{"made_with": {}, "validation_loss": {"1": 0.5}}')
    with open_checkpoints(tmp_path, keep=2) as store:
        assert store.restore_newest(state_of(0))[0] == 1 and store.losses == {1: 0.5}


def test_a_damaged_best_checkpoint_is_one_message(tmp_path):
    with open_checkpoints(tmp_path, keep=1) as store:
        for step, loss in ((1, 0.1), (2, 0.5)):
            store.save(step, state_of(step), validation_loss=loss)
        np.testing.assert_array_equal(store.restore_best(state_of(0))["a"], state_of(1)["a"])
    damage(tmp_path / "1")
    with (
        open_checkpoints(tmp_path, keep=1) as store,
        pytest.raises(CheckpointError, match=r"checkpoint 1 cannot be read .* best one; put back"),
    ):
        store.restore_best(state_of(0))


def test_links_are_those_that_were_written_or_refused(tmp_path):
    path = tmp_path / "links.safetensors"
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    save_links(path, Links({"a": {"w": weight}}, {"a->b": {"w": weight[:1, :1]}}))
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 7):
        flip(path, bit)
        try:
            found = load_links(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
        else:  # in the name of the checksum, in a blank
            np.testing.assert_array_equal(found.inner["a"]["w"], weight)
        path.write_bytes(good)
    for raw in (good[:100], good[:4], b"", good + b"\0"):
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"links\.safetensors: not a whole"):
            load_links(path)
    path.write_bytes(safetensors.numpy.save({"inner/a/w": weight, "outer/a->b/w": weight}))
    np.testing.assert_array_equal(load_links(path).inner["a"]["w"], weight)
    for names in (["inner/a/w"], ["outer/a->b/w", "middle/w"], ["inner/a/w", "outer/b/w", "x"]):
        path.write_bytes(safetensors.numpy.save(dict.fromkeys(names, weight)))
        with pytest.raises(CheckpointError, match="must hold inner and outer links, got "):
            load_links(path)
