"""Reading piece by piece equals reading at once; batches, scans and every field of the config."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.models import (
    Decoder,
    DecoderConfig,
    UnsupportedModelError,
    empty_cache,
    load_pretrained,
    seal,
)
from rmas_jax.models.cache import Block, Cache, append, by_layer, stacked
from rmas_jax.models.rope import RopeScaling
from rmas_jax.models.weights import apart, weight_table

TOLERANCE = 1e-4
# Without windows; with them and two rotary bases; with linear layers; with several loops.
FAMILIES = ["llama", "gemma3", "qwen3_5", "ouro"]


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, embeds, valid, cache=None):
    return model.apply({"params": params}, embeds, valid, cache)


def embeddings(config: DecoderConfig, batch: int, time: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, time, config.width)).astype(np.float32)


def left_padded(rows: list[np.ndarray], time: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [t, D] -> embeddings [B, T, D] and valid [B, T]; pads hold junk, not zeros."""
    embeds = np.full((len(rows), time, rows[0].shape[1]), 7.0, np.float32)
    valid = np.zeros((len(rows), time), bool)
    for i, row in enumerate(rows):
        embeds[i, time - len(row) :] = row
        valid[i, time - len(row) :] = True
    return embeds, valid


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", FAMILIES)
def test_blocks_and_single_steps_equal_reading_at_once(oracle, case):
    """Two sealed ragged blocks and three single steps, some spare slots in every block.

    row 0:  p p p p | . . x x x | s s s         . padding, a row's real tokens are in one order
    row 1:  . . p p | x x x x x | s s s
    row 2:  . . . . | . . . . x | s s s         a block may be all padding
    """
    model, params = load_pretrained(oracle(case).directory)
    config = model.config
    rows = embeddings(config, 3, 12)
    lengths = np.array([[4, 3, 3], [2, 5, 3], [0, 1, 3]])

    parts = np.split(rows, [4, 9], axis=1)
    blocks = [
        left_padded([part[i, : lengths[i, b]] for i in range(3)], part.shape[1])
        for b, part in enumerate(parts)
    ]
    cache = empty_cache(config, 3, 6)
    first, cache = read(model, params, *blocks[0], cache)
    cache = seal(cache, config, 8)
    second, cache = read(model, params, *blocks[1], cache)
    cache = seal(cache, config, 5)
    steps = []
    for t in range(3):
        step, cache = read(model, params, *(x[:, t : t + 1] for x in blocks[2]), cache)
        steps.append(step)
    pieces = np.concatenate([first, second, *steps], axis=1)

    embeds, valid = (np.concatenate(xs, axis=1) for xs in zip(*blocks, strict=True))
    packed = left_padded([embeds[i][valid[i]] for i in range(3)], 12)
    at_once = read(model, params, *packed)
    assert_close(pieces[valid], at_once[packed[1]])
    np.testing.assert_array_equal(cache.next_position, lengths.sum(axis=1))


@pytest.mark.parametrize("case", FAMILIES)
def test_batch_of_one_equals_batch_of_many(oracle, case):
    model, params = load_pretrained(oracle(case).directory)
    rows = [embeddings(model.config, 1, time, seed=time)[0] for time in (9, 4)]
    many, valid = left_padded(rows, 9)
    hidden = read(model, params, many, valid)
    alone = read(model, params, rows[1][None], np.ones((1, 4), bool))
    assert_close(hidden[1][valid[1]], alone[0])
    alone = read(model, params, many[1:], valid[1:])
    assert_close(hidden[1][valid[1]], alone[0][valid[1]])


@pytest.mark.parametrize("case", ["gemma3", "qwen3_5", "ouro"])
def test_unrolled_layers_equal_scanned_layers(oracle, case):
    model, params = load_pretrained(oracle(case).directory)
    embeds, valid = left_padded(list(embeddings(model.config, 2, 7)), 9)
    results = []
    for unroll in (False, True):
        either = dataclasses.replace(model, unroll_layers=unroll)
        params = apart(params) if unroll else params
        cache = empty_cache(model.config, 2, 10)
        first, cache = read(either, params, embeds, valid, cache)
        second, cache = read(either, params, embeds[:, -1:], valid[:, -1:], cache)
        results.append((first[valid], second, cache))
    jax.tree.map(assert_close, *results)


@pytest.mark.parametrize("case", ["gemma3", "qwen3_5"])
def test_pads_of_any_content_change_nothing(oracle, case):
    model, params = load_pretrained(oracle(case).directory)
    embeds, valid = left_padded([row[:5] for row in embeddings(model.config, 2, 5)], 8)
    other = np.where(valid[:, :, None], embeds, np.float32(-3e4))
    hidden, changed = (read(model, params, e, valid) for e in (embeds, other))
    np.testing.assert_array_equal(hidden[valid], changed[valid])
    assert np.all(np.isfinite(changed))


def test_pads_between_the_tokens_of_one_block_change_nothing(oracle):
    """A prompt of several parts has pads in front of each part: `. x x . . x` is `x x x`."""
    model, params = load_pretrained(oracle("qwen3_5").directory)
    tokens = embeddings(model.config, 2, 6)
    valid = np.array([[False, True, True, False, False, True], [True] * 6])
    cache = empty_cache(model.config, 2, 9)
    hidden, cache = read(model, params, tokens, valid, cache)
    last, _ = read(model, params, tokens[:, :1], np.ones((2, 1), bool), cache)
    for row in range(2):
        packed = np.concatenate([tokens[row][valid[row]], tokens[row, :1]])[None]
        alone = read(model, params, packed, np.ones(packed.shape[:2], bool))[0]
        assert_close(hidden[row][valid[row]], alone[:-1])
        assert_close(last[row], alone[-1:])


@pytest.mark.parametrize("case", ["gemma3", "qwen3_5"])
def test_past_blocks_are_constant_under_a_scan(oracle, case):
    """A `lax.scan` that carries all but the finished blocks equals single steps with all."""
    model, params = load_pretrained(oracle(case).directory)
    config = model.config
    first, second = embeddings(config, 2, 5)
    prefix, valid = left_padded([first, second[:3]], 5)
    _, cache = read(model, params, prefix, valid, empty_cache(config, 2, 5))
    cache = seal(cache, config, 4)
    thoughts = embeddings(config, 2, 4, seed=1)
    one = np.ones((2, 1), bool)

    @jax.jit
    def scanned(params, cache, thoughts):
        def step(carry, thought):
            now = carry.replace(past=cache.past)
            hidden, now = model.apply({"params": params}, thought[:, None], one, now)
            return now.replace(past=()), hidden[:, 0]

        return jax.lax.scan(step, cache.replace(past=()), jnp.swapaxes(thoughts, 0, 1))[1]

    ours = np.swapaxes(scanned(params, cache, thoughts), 0, 1)
    at_once, _ = read(model, params, thoughts, np.ones((2, 4), bool), cache)
    assert_close(ours, at_once)


BASE = DecoderConfig(
    model_type="test",
    vocab_size=13,
    width=16,
    ffn_width=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=100.0,
    window=3,
    sliding_layers=(True, False),
    local_rope_theta=10.0,
)
# The second layer is linear, the first slides.
HYBRID = dataclasses.replace(
    BASE,
    linear_layers=(False, True),
    linear_key_heads=2,
    linear_value_heads=4,
    linear_key_dim=4,
    linear_value_dim=3,
    conv_width=3,
)
CHANGES = {
    "vocab_size": 14,
    "width": 18,
    "ffn_width": 22,
    "num_layers": 1,
    "num_heads": 6,
    "num_kv_heads": 4,
    "head_dim": 8,
    "rope_theta": 150.0,
    "norm_eps": 0.5,
    "activation": "gelu_tanh",
    "tie_embeddings": True,
    "qkv_bias": True,
    "out_bias": True,
    "ffn_bias": True,
    "qk_norm": True,
    "unit_offset_norm": True,
    "sandwich_norms": True,
    "embed_scale": 2.0,
    "query_scale": 1.0,
    "window": 2,
    "sliding_layers": (False, True),
    "local_rope_theta": 80.0,
    "gated_attention": True,
    "rope_scaling": RopeScaling("linear", 4.0),
    "local_rope_scaling": RopeScaling("linear", 4.0),
    "rotary_fraction": 0.7,
    "linear_layers": (True, False),
    "linear_key_heads": 1,
    "linear_value_heads": 6,
    "linear_key_dim": 5,
    "linear_value_dim": 4,
    "conv_width": 2,
    "loops": 2,
}
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])


def base_of(field: str | None) -> DecoderConfig:
    """The decoder in which a field matters."""
    return HYBRID if field and field.startswith(("linear_", "conv_")) else BASE


def changed(field: str | None) -> DecoderConfig:
    """A decoder with one field changed, and what must follow from it."""
    change = {} if field is None else {field: CHANGES[field]}
    if field == "num_layers":
        change["sliding_layers"] = (True,)
    return dataclasses.replace(base_of(field), **change)


def random_params(config: DecoderConfig) -> dict:
    """Parameters from the weight table alone; the same row of the table gives the same numbers."""
    shapes = jax.eval_shape(
        Decoder(config).init,
        jax.random.key(0),
        jnp.zeros((1, 2, config.width)),
        jnp.ones((1, 2), bool),
    )["params"]

    def fill(path, leaf):
        rng = np.random.default_rng(len(jax.tree_util.keystr(path)))
        return rng.normal(scale=0.4, size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def logits_of(config: DecoderConfig) -> np.ndarray:
    def run(params, ids):
        variables, model = {"params": params}, Decoder(config)
        embeds = model.apply(variables, ids, method="embed")
        hidden = model.apply(variables, embeds, jnp.ones(ids.shape, bool))
        return model.apply(variables, hidden, method="unembed")

    return np.asarray(jax.jit(run)(random_params(config), IDS))


def test_every_field_has_a_change():
    fields = {field.name for field in dataclasses.fields(DecoderConfig)}
    assert set(CHANGES) == fields - {"model_type"}  # names the family, shapes nothing


@pytest.mark.parametrize("field", CHANGES)
def test_field_of_config_changes_the_output(field):
    before, after = logits_of(base_of(field)), logits_of(changed(field))
    assert before.shape != after.shape or np.abs(before - after).max() > 1e-2


@pytest.mark.parametrize(
    "field",
    [
        None,
        "num_heads",
        "num_layers",
        "tie_embeddings",
        "qkv_bias",
        "out_bias",
        "ffn_bias",
        "qk_norm",
        "sandwich_norms",
        "gated_attention",
        "linear_value_heads",
        "loops",
    ],
)
def test_weight_table_is_the_parameter_tree(field):
    config = changed(field)
    params = random_params(config)
    table = {w.path: w.shape for w in weight_table(config)}
    actual = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert table == actual


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("linear_layers", (True, True), "layer_types must have a layer with attention.*, got "),
        ("linear_layers", (True,), "linear_layers must have num_layers=2 entries or none, got 1"),
        ("linear_key_dim", 0, "linear_key_head_dim must be an integer from 1 .*got 0"),
        (
            "linear_key_heads",
            3,
            r"linear_num_value_heads must be a multiple of linear_num_key_heads \(3\), got 4",
        ),
        ("conv_width", 1, "linear_conv_kernel_dim must .*got 1"),
        ("loops", 0, "total_ut_steps must .*got 0"),
        ("rotary_fraction", 0.5, "even number of head_dim.*, got .*0.5"),
    ],
)
def test_refused_configurations(field, value, message):
    with pytest.raises(UnsupportedModelError, match=message):
        dataclasses.replace(HYBRID, **{field: value})


@pytest.mark.parametrize("is_apart", [False, True])
def test_each_row_writes_at_a_slot_of_its_own(is_apart):
    """Slots [3, 0, 2] of four, and what stood there before."""
    rng = np.random.default_rng(0)
    layers, rows, heads, slots, size = 2, 3, 2, 4, 5

    def block(time):
        numbers = rng.normal(size=(2, layers, rows, heads, time, size)).astype(np.float32)
        valid = rng.random((rows, time)) < 0.5
        return Block(*numbers, valid, rng.integers(9, size=(rows, time), dtype=np.int32))

    old, new, used = block(slots), block(1), np.array([3, 0, 2], np.int32)
    cache = Cache((), jax.tree.map(jnp.asarray, old), jnp.asarray(used), jnp.zeros(rows, jnp.int32))
    cache = by_layer(cache) if is_apart else cache
    after = jax.jit(append)(cache, new)
    np.testing.assert_array_equal(after.used, used + 1)
    written = stacked(after.tail)
    for row, slot in enumerate(used):
        old.keys[:, row, :, slot] = new.keys[:, row, :, 0]
        old.values[:, row, :, slot] = new.values[:, row, :, 0]
        old.valid[row, slot] = new.valid[row, 0]
        old.positions[row, slot] = new.positions[row, 0]
    jax.tree.map(np.testing.assert_array_equal, written, old)
