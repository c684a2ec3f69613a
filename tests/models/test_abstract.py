"""Abstract agents: what loading would give, known from the configuration alone."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import FAMILIES, draw_config
from systems import random_params

from rmas_jax.models import (
    CheckpointError,
    Decoder,
    UnsupportedModelError,
    abstract_agent,
    config_from_hf,
    load_pretrained,
    save_pretrained,
)
from rmas_jax.sharding import make_mesh

CONFIGS = {family: config_from_hf(draw_config(seed)) for seed, family in enumerate(FAMILIES)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Function from a family to a directory with a random model of it."""
    directories = {}

    def build(family):
        if family not in directories:
            directories[family] = tmp_path_factory.mktemp(family)
            config = CONFIGS[family]
            save_pretrained(directories[family], Decoder(config), random_params(config, 0))
        return directories[family]

    return build


def assert_describes(abstract, params, *, mesh):
    """Same structure; of each array the same shape, dtype and, on a mesh, sharding."""
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    for (path, ours), leaf in zip(
        jax.tree_util.tree_leaves_with_path(abstract), jax.tree.leaves(params), strict=True
    ):
        assert isinstance(ours, jax.ShapeDtypeStruct)
        assert (ours.shape, ours.dtype) == (leaf.shape, leaf.dtype), path
        assert ours.sharding == (None if mesh is None else leaf.sharding), path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("on_mesh", [False, True], ids=["whole", "eight devices"])
def test_an_abstract_agent_is_a_loaded_one_without_values(checkpoint, family, weights, on_mesh):
    mesh = make_mesh(2, 2, 2) if on_mesh else None
    model, params = load_pretrained(checkpoint(family), "bfloat16", mesh, weights=weights)
    for source in (CONFIGS[family], checkpoint(family)):
        abstract = abstract_agent(source, mesh, dtype="bfloat16", weights=weights)
        assert abstract[0] == model
        assert_describes(abstract[1], params, mesh=mesh)


@pytest.mark.parametrize(("dtype", "weights"), [("float32", None), ("bfloat16", "int8")])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_text"])
def test_a_program_compiled_ahead_of_time_runs_on_loaded_parameters(
    checkpoint, family, dtype, weights
):
    mesh = make_mesh(2, 2, 2)
    model, abstract = abstract_agent(CONFIGS[family], mesh, dtype=dtype, weights=weights)
    ids = np.array([[5, 3, 8, 1], [0, 0, 2, 9]])

    @jax.jit
    def logits(params):
        embeds = model.apply({"params": params}, ids, method="embed")
        hidden = model.apply({"params": params}, embeds, jnp.asarray(ids > 0))
        return model.apply({"params": params}, hidden, method="unembed")

    compiled = logits.lower(abstract).compile()
    _, params = load_pretrained(checkpoint(family), dtype, mesh, weights=weights)
    np.testing.assert_array_equal(compiled(params), logits(params))
    # The control: parameters that lie elsewhere are refused.
    _, elsewhere = load_pretrained(checkpoint(family), dtype, make_mesh(1, 1, 8), weights=weights)
    with pytest.raises(ValueError, match="sharding"):
        compiled(elsewhere)


def test_config_json_is_all_that_is_read(checkpoint, tmp_path):
    shutil.copy(checkpoint("llama") / "config.json", tmp_path)
    assert abstract_agent(tmp_path)[0].config == CONFIGS["llama"]
    with pytest.raises(CheckpointError, match=r"must have model\.safetensors or"):
        load_pretrained(tmp_path)


def test_options_are_refused_as_in_loading(tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be one of float32, .*, got 'float64'"):
        abstract_agent(tmp_path, dtype="float64")
    with pytest.raises(ValueError, match="weights must be None or one of int8, got 'int4'"):
        abstract_agent(tmp_path, weights="int4")
    with pytest.raises(
        UnsupportedModelError, match=r"gemma3_text must be float32 or bfloat16.*, got 'float16'"
    ):
        abstract_agent(CONFIGS["gemma3_text"], dtype="float16")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        abstract_agent(tmp_path)


def test_published_sizes_need_no_memory():
    """Of a model of hundreds of billions of parameters, each device's share is known."""
    config = dataclasses.replace(
        CONFIGS["llama"], vocab_size=128256, width=16384, ffn_width=53248, num_layers=126
    )
    _, abstract = abstract_agent(config, make_mesh(1, 4, 2), dtype="bfloat16")
    gate = abstract["layers"]["ffn"]["gate_kernel"]
    assert gate.shape == (126, 53248, 16384)
    assert gate.sharding.shard_shape(gate.shape) == (126, 6656, 16384)
