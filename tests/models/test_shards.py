"""Weights read part by part into the shardings of a mesh."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS

from rmas_jax import sharding
from rmas_jax.models import Decoder, hf, load_pretrained, save_pretrained
from rmas_jax.models.shards import closed, read_part
from rmas_jax.models.weights import weight_table
from rmas_jax.sharding import make_mesh

EVEN = dataclasses.replace(CONFIGS["planner"], vocab_size=40, tie_embeddings=False)
ODD = CONFIGS["critic"]  # three heads, 37 tokens
BIASED = dataclasses.replace(EVEN, qkv_bias=True, out_bias=True, ffn_bias=True)
IDS = np.array([[5, 3, 8, 1], [0, 0, 2, 9]])
VALID = IDS > 0


class Counting:
    """An array that counts the elements that were taken from it."""

    def __init__(self, array):
        self.array, self.taken = array, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.taken += part.size
        return part


@pytest.mark.parametrize("config", [EVEN, ODD, BIASED, CONFIGS["solver"]], ids=str)
def test_parts_equal_those_of_the_whole(config):
    """Halves in every combination of dimensions; those that are split read no more than needed."""
    random = np.random.default_rng(0)
    for weight in weight_table(config):
        stored = random.normal(size=weight.stored_shape)
        whole = read_part(weight, stored, tuple(slice(0, n) for n in weight.layer_shape))
        assert whole.shape == weight.layer_shape
        np.testing.assert_array_equal(weight.to_stored(whole), stored)
        choices = [
            (slice(0, n), slice(0, n // 2), slice(n // 2, n)) if n > 1 else (slice(0, 1),)
            for n in weight.layer_shape
        ]
        axes = weight.logical_axes[-len(weight.layer_shape) :]
        for index in itertools.product(*choices):
            counting = Counting(stored)
            part = read_part(weight, counting, index)
            np.testing.assert_array_equal(part, whole[index])
            heads_are_whole = all(
                s.stop - s.start == n
                for s, n, axis in zip(index, weight.layer_shape, axes, strict=True)
                if axis == "head_dim"
            )
            if heads_are_whole:
                assert counting.taken == part.size


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Function from a config to a directory with a random model of it."""
    directories = {}

    def build(config):
        if config not in directories:
            directory = tmp_path_factory.mktemp("checkpoint")
            random = np.random.default_rng(0)
            inputs = (np.zeros((1, 1, config.width), np.float32), np.ones((1, 1), bool))
            shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), *inputs)
            params = jax.tree.map(
                lambda x: random.normal(scale=0.3, size=x.shape).astype(np.float32),
                shapes["params"],
            )
            save_pretrained(directory, Decoder(config), params)
            directories[config] = directory
        return directories[config]

    return build


def shard_shapes(params):
    """Path -> shape of the first device's share."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        "/".join(key.key for key in path): leaf.addressable_shards[0].data.shape
        for path, leaf in leaves
    }


def hidden_states(model, params):
    @jax.jit
    def read(params):
        embeds = model.apply({"params": params}, IDS, method="embed")
        hidden = model.apply({"params": params}, embeds, jnp.asarray(VALID))
        return hidden, model.apply({"params": params}, hidden, method="unembed")

    return [np.asarray(x)[VALID] for x in read(params)]


EVEN_SHARDS = {
    "embedding": (10, 16),
    "unembed_kernel": (10, 16),
    "layers/attention/q_kernel": (2, 2, 6, 8),
    "layers/attention/k_kernel": (2, 1, 6, 8),
    "layers/attention/o_kernel": (2, 8, 2, 6),
    "layers/attention/q_norm/weight": (2, 6),
    "layers/ffn/gate_kernel": (2, 6, 16),
    "layers/ffn/down_kernel": (2, 16, 6),
    "final_norm/weight": (16,),
}
ODD_SHARDS = {  # over `model`, only the feed-forward divides
    "embedding": (37, 6),
    "layers/attention/q_kernel": (2, 3, 4, 6),
    "layers/attention/o_kernel": (2, 6, 3, 4),
    "layers/ffn/up_kernel": (2, 6, 12),
}


@pytest.mark.parametrize(
    ("config", "expected", "said"),
    [(EVEN, EVEN_SHARDS, set()), (ODD, ODD_SHARDS, {"vocab=37", "heads=3", "kv_heads=3"})],
    ids=["even", "odd"],
)
def test_eight_devices_equal_one(checkpoint, caplog, config, expected, said):
    sharding._warn_not_divided.cache_clear()
    directory = checkpoint(config)
    _, whole = load_pretrained(directory)
    one = make_mesh(devices=jax.devices()[:1])
    with caplog.at_level(logging.WARNING):
        model, single = load_pretrained(directory, mesh=one)
        assert not caplog.records
        _, params = load_pretrained(directory, mesh=make_mesh(2, 2, 2))
    assert {record.getMessage().split(" ")[0] for record in caplog.records} == said
    assert len(caplog.records) == len(said)

    shapes = shard_shapes(params)
    assert {path: shapes[path] for path in expected} == expected
    for leaf, same, small in zip(*map(jax.tree.leaves, (params, whole, single)), strict=True):
        assert len(leaf.sharding.device_set) == 8 and len(small.sharding.device_set) == 1
        np.testing.assert_array_equal(leaf, same)
        np.testing.assert_array_equal(small, same)
    results = [hidden_states(model, given) for given in (single, params)]
    for ours, theirs in zip(*results, strict=True):
        assert np.abs(theirs).max() > 0.5
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    # The control: what another model says is further away than the tolerance.
    other = jax.tree.map(lambda x: x * 1.001, whole)
    assert np.abs(hidden_states(model, other)[0] - results[0][0]).max() > 1e-4


def test_each_part_is_read_once_and_no_more_than_a_process_needs(checkpoint, monkeypatch):
    taken = {}

    def read_shard(weight, index, *rest):
        taken.setdefault(weight.path, []).append(index)
        return original(weight, index, *rest)

    original = hf.read_shard
    monkeypatch.setattr(hf, "read_shard", read_shard)
    directory = checkpoint(EVEN)
    load_pretrained(directory, mesh=make_mesh(2, 2, 2))
    sizes = {path: [np.prod([s.stop - s.start for s in i]) for i in t] for path, t in taken.items()}
    for weight in weight_table(EVEN):
        total = np.prod(weight.shape)
        assert sum(sizes[weight.path]) == total  # all of it, nothing twice
    assert len(sizes["embedding",]) == 4 and len(sizes["final_norm", "weight"]) == 1


def test_explicit_mesh_with_other_axes_and_bfloat16(checkpoint):
    mesh = jax.make_mesh((4, 2), ("batch", "model"))
    model, params = load_pretrained(checkpoint(EVEN), dtype="bfloat16", mesh=mesh)
    assert shard_shapes(params)["embedding"] == (20, 16)
    _, whole = load_pretrained(checkpoint(EVEN), dtype="bfloat16")
    for leaf, same in zip(*map(jax.tree.leaves, (params, whole)), strict=True):
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, same)
    assert np.all(np.isfinite(hidden_states(model, params)[1]))  # no layer needs annotations


def test_closed_fills_in_both_ends():
    index = (slice(None), slice(2, None), slice(0, 3))
    assert closed(index, (4, 5, 6)) == (slice(0, 4), slice(2, 5), slice(0, 3))
