"""The closed form of FLOPs against the compiled programs, and against a count pair by pair."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS

from rmas_jax.models import Decoder, DecoderConfig, empty_cache
from rmas_jax.models.flops import layer_weights, logit_flops, read_flops, text_flops

# Wide, so that products outweigh the rest of a program.
WIDE = DecoderConfig(
    model_type="llama",
    vocab_size=512,
    width=128,
    ffn_width=320,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=100.0,
)
LINEAR = dataclasses.replace(
    WIDE,
    model_type="qwen3_5_text",
    linear_layers=(True, False),
    linear_key_heads=2,
    linear_value_heads=4,
    linear_key_dim=16,
    linear_value_dim=32,
    conv_width=4,
)
LOOPED = dataclasses.replace(WIDE, model_type="ouro", loops=3)
CASES = {"dense": WIDE, "linear": LINEAR, "looped": LOOPED, **CONFIGS}


def compiled_step_flops(config: DecoderConfig, context: int) -> float:
    """XLA's count of a step that reads one position after a full cache and gives its logits."""
    decoder = Decoder(config, unroll_layers=True)  # XLA counts the body of a loop once
    params = jax.eval_shape(
        functools.partial(decoder.init, method=initialised),
        jax.random.key(0),
        jnp.zeros((1, 1), jnp.int32),
    )["params"]

    def step(params, ids, cache):
        embeds = decoder.apply({"params": params}, ids, method="embed")
        valid = jnp.ones(ids.shape, bool)
        hidden, _ = decoder.apply({"params": params}, embeds, valid, cache)
        return decoder.apply({"params": params}, hidden, method="unembed")

    cache = jax.eval_shape(lambda: empty_cache(config, 1, context + 1))
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.jit(step).lower(params, ids, cache).compile().cost_analysis()["flops"]


def initialised(decoder: Decoder, ids: jax.Array) -> jax.Array:
    embeds = decoder.embed(ids)
    return decoder.unembed(decoder(embeds, jnp.ones(ids.shape, bool)))


@pytest.mark.parametrize("name", ["dense", "linear", "looped"])
def test_a_step_costs_what_its_compiled_program_does(name):
    config, context = CASES[name], 63
    ours = float(read_flops(config, 1, context) + logit_flops(config, 1))
    theirs = compiled_step_flops(config, context)
    # XLA also counts norms, rotations, activations and masks.
    assert ours < theirs < 1.1 * ours
    # The control: a feed-forward that is a quarter wider would not fit.
    wider = dataclasses.replace(config, ffn_width=config.ffn_width * 5 // 4)
    assert float(read_flops(wider, 1, context) + logit_flops(wider, 1)) > theirs


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("context", [0, 3, 9])
def test_reading_is_the_sum_over_pairs_of_query_and_key(name, context):
    config, positions = CASES[name], 7
    linear = config.linear_layers or (False,) * config.num_layers
    sliding = config.sliding_layers or (False,) * config.num_layers
    ffn = 3 * config.width * config.ffn_width
    heads = config.num_heads * config.head_dim
    attention = 2 * config.width * (heads + config.num_kv_heads * config.head_dim)
    keys, values = 2 * 2 * 16, 4 * 32  # of LINEAR
    delta = config.width * (keys + values + values + 4 + 4) + values * config.width
    delta += 4 * (keys + values)  # the convolution
    total = 0
    for _ in range(config.num_loops):
        for of_layer, slides in zip(linear, sliding, strict=True):
            for query in range(context, context + positions):
                total += 2 * (ffn + (delta if of_layer else attention))
                if of_layer:
                    total += 6 * values * 16
                    continue
                for key in range(query + 1):
                    if not slides or query - key < config.window:
                        total += 4 * heads
    assert float(read_flops(config, positions, context)) == total


def test_pieces_cost_as_much_as_the_whole_and_rows_are_independent():
    lengths = np.array([0, 1, 5, 40])
    for config in CASES.values():
        whole = read_flops(config, lengths + 11, 2)
        pieces = read_flops(config, lengths, 2) + read_flops(config, 11, lengths + 2)
        np.testing.assert_array_equal(whole, pieces)
        assert whole.dtype == np.float64 and (np.diff(whole) > 0).all()


def test_a_text_reads_all_of_its_tokens_but_the_last():
    c = WIDE
    found = text_flops(c, [4, 0], body=[5, 5], prefix=[3, 3], text=[6, 0])
    written = read_flops(c, 5 + 6 - 1, 3) + logit_flops(c, 4)
    np.testing.assert_array_equal(found, [written, read_flops(c, 5, 3)])


def test_published_sizes():
    """Llama-2 7B: 6.476e9 weights in its layers (6.738e9 without both embeddings of 131 M)."""
    llama = DecoderConfig(
        model_type="llama",
        vocab_size=32_000,
        width=4_096,
        ffn_width=11_008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        rope_theta=10_000.0,
    )
    norms = (2 * 32 + 1) * 4_096
    assert layer_weights(llama) == 6_738_415_616 - 2 * 32_000 * 4_096 - norms
    # A token of a text costs about 2 FLOPs per weight, here 13.2 GFLOP.
    assert float(read_flops(llama, 1) + logit_flops(llama, 1)) == pytest.approx(13.2e9, rel=1e-2)
