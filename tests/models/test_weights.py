"""The table of weights: every row is used, says what is known, and makes the parameters."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import FAMILIES, draw_config
from flax import traverse_util

from rmas_jax.models import Decoder, DecoderConfig, config_from_hf
from rmas_jax.models.stored_names import PREFIXES, with_prefix
from rmas_jax.models.weights import DIMENSIONS, INITIALISERS, ROWS, STORED_NAMES, weight_table

CONFIGS = [config_from_hf(draw_config(seed)) for seed in range(80)]


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.path)
def test_a_row_names_what_there_is(row):
    assert {*row.flat_dims} <= {*DIMENSIONS} and row.init in INITIALISERS
    assert {*row.flat_dims} - {*row.dims} <= {"1"} and {*row.dims} <= {*row.flat_dims}
    assert {*row.int8.split()} <= {*row.dims}
    assert not row.when or hasattr(CONFIGS[0], row.when)
    users = [c for c in CONFIGS if any(weight.row is row for weight in weight_table(c))]
    assert users and all(row.is_in(c) for c in users)


def test_families_rename_rows_that_they_have():
    for family, names in STORED_NAMES.items():
        config = next(c for c in CONFIGS if c.model_type == family)
        assert names.keys() <= {weight.row.path for weight in weight_table(config)}
    for config in CONFIGS:  # no two weights are read from one tensor
        names = [name for weight in weight_table(config) for name in weight.names]
        assert len(names) == len({*names})


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.path)
def test_large_weights_are_split_and_vectors_of_the_width_are_whole(row):
    axes = {DIMENSIONS[d].axis for d in row.dims} - {None, "head_dim"}
    small = "d" in row.dims or row.path in ("exit_bias", "linear/conv_kernel", "linear/norm_weight")
    assert bool(axes) != (small or row.dims == ("H",))


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_declare_the_table(family):
    config = next(c for c in CONFIGS if c.model_type == family)
    inputs = jnp.zeros((1, 2, config.width)), jnp.ones((1, 2), bool)
    params = traverse_util.flatten_dict(
        jax.jit(Decoder(config).init)(jax.random.key(0), *inputs)["params"]
    )
    table = {weight.path: weight for weight in weight_table(config)}
    assert {path: leaf.shape for path, leaf in params.items()} == {
        path: weight.shape for path, weight in table.items()
    }
    for path, weight in table.items():
        values, init = np.asarray(params[path]), weight.row.init
        if init == "normal" and values.size > 500:
            assert 0.015 < values.std() < 0.025, path
        elif init != "normal":
            factor = values + (init == "unit" and config.unit_offset_norm)
            assert np.all(factor == (init != "zeros")), path


def test_a_row_with_sizes():
    sizes = {"vocab_size": 7, "width": 8, "ffn_width": 5, "num_layers": 2, "head_dim": 6}
    config = DecoderConfig("qwen3", num_heads=4, num_kv_heads=2, rope_theta=1e4, **sizes)
    (weight,) = (w for w in weight_table(config) if w.row.path == "attention/q_kernel")
    assert weight.path == ("layers", "attention", "q_kernel")
    assert weight.names == tuple(f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))
    assert (weight.stored_shape, weight.shape) == ((24, 8), (2, 4, 6, 8))
    assert weight.logical_axes == ("layers", "heads", "head_dim", "embed")
    assert weight.scale_axes == (2,)
    assert [layer.names for layer in weight.layers()] == [(name,) for name in weight.names]
    assert {layer.shape for layer in weight.layers()} == {(4, 6, 8)}
    param = np.arange(4 * 6 * 8).reshape(4, 6, 8)
    np.testing.assert_array_equal(weight.to_stored(param), param.reshape(24, 8))


def test_prefixes_rename_all_tensors_of_a_model():
    config = next(c for c in CONFIGS if c.has_unembedding)
    plain = [name for weight in weight_table(config) for name in weight.names]
    for prefix in PREFIXES:
        renamed = [name for weight in weight_table(config, prefix) for name in weight.names]
        assert renamed == [with_prefix(name, prefix) for name in plain]
        assert PREFIXES[prefix] + "lm_head.weight" in renamed
        assert sum(name.startswith(prefix) for name in renamed) >= len(renamed) - 1
    for one, other in itertools.combinations(PREFIXES, 2):
        assert with_prefix(plain[0], one) != with_prefix(plain[0], other)
