"""Which checkpoints stay, and that what is saved in the background is what was there then."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.checkpoints import CheckpointStore, load_links, save_links
from rmas_jax.models import CheckpointError


def state_of(step):
    return {"a": jnp.full((3, 2), step, jnp.float32), "step": jnp.asarray(step)}


def test_the_newest_and_the_best_stay(tmp_path):
    losses = {1: 0.9, 2: 0.1, 3: None, 4: 0.5, 5: None, 6: None}
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.steps() == () and store.best_step() is None
        for step, loss in losses.items():
            store.save(step, state_of(step), validation_loss=loss)
        assert store.steps() == (2, 5, 6)
        assert store.best_step() == 2
    with CheckpointStore(tmp_path, keep=2) as store:  # the losses are known to the next run
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
    with CheckpointStore(tmp_path, keep=1) as store:
        store.save(50, state_of(50), validation_loss=0.1)
        store.save(100, state_of(100), validation_loss=0.2)
    damage(tmp_path / "100")
    with CheckpointStore(tmp_path, keep=1) as store:
        assert store.restore_newest(state_of(0))[0] == 50
        assert store.steps() == (50,) and not (tmp_path / "100").exists()
        store.save(70, state_of(70))
        assert store.steps() == (50, 70) and store.best_step() == 50
    with CheckpointStore(tmp_path, keep=1) as store:  # what was removed is not in the record
        assert store.restore_newest(state_of(0))[0] == 70
        assert store.losses == {50: 0.1}


def test_checkpoints_that_cannot_be_read_are_no_new_start(tmp_path):
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.restore_newest(state_of(0)) is None
        store.save(1, state_of(1))
        store.save(2, state_of(2))
    for step in ("1", "2"):
        damage(tmp_path / step)
    with (
        CheckpointStore(tmp_path, keep=2) as store,
        pytest.raises(CheckpointError, match=rf"{tmp_path}: none of the checkpoints 1, 2 can be"),
    ):
        store.restore_newest(state_of(0))
    assert (tmp_path / "1").exists() and (tmp_path / "2").exists()


def test_one_process_alone_finds_every_damaged_file_of_arrays(tmp_path):
    with CheckpointStore(tmp_path, keep=1) as store:
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
    with CheckpointStore(tmp_path, keep=9) as store:
        for step, loss in {1: float("nan"), 2: 0.5, 3: float("-inf"), 4: 0.4}.items():
            assert store.best_step() == {3: 2, 4: 2}.get(step)
            store.save(step, state_of(step), validation_loss=loss)
        assert store.best_step() == 4


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jnp.zeros((2048, 1024))
    with CheckpointStore(tmp_path, keep=9) as store:
        for step in range(4):
            store.save(step, {"a": state})
            for _ in range(3):
                state = add(state)
        for step in range(4):
            kept = store.restore(step, {"a": state})["a"]
            assert kept.min() == kept.max() == 3 * step


def test_links_come_back_from_their_file(tmp_path):
    links = {"inner": {"a": {"w": jnp.arange(3.0)}}, "outer": {"a->b": {"w": jnp.ones((2, 2))}}}
    save_links(tmp_path / "folder" / "links.safetensors", links)
    back = load_links(tmp_path / "folder" / "links.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(links)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(links), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["links.safetensors"]
