"""The decoders against transformers: hidden states, logits, gradients, greedy text."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rmas_jax.models import Decoder, empty_cache, load_pretrained

TOLERANCE = 1e-4
# Each layer kind and option once; what they are is in conftest.py.
FAMILIES = ["llama", "qwen3-window", "gemma3"]
CASES = [*FAMILIES, "llama-mqa-untied", "llama-mha", "qwen3", "qwen3-tied", "gemma3-mqa-untied"]
LENGTHS = (11, 6, 1)  # of the rows of a left-padded batch; longer than any window


def ragged_batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] and valid [B, T], pads on the left."""
    time = max(LENGTHS)
    ids = np.random.default_rng(seed).integers(1, 61, (len(LENGTHS), time))
    valid = np.arange(time)[None, :] >= time - np.array(LENGTHS)[:, None]
    return np.where(valid, ids, 0), valid


def torch_forward(model, valid, **inputs):
    """Hidden states after the final norm [B, T, D] and logits [B, T, V]."""
    mask = torch.tensor(valid).long()
    out = model(
        **inputs,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        output_hidden_states=True,
    )
    return out.hidden_states[-1], out.logits


@functools.partial(jax.jit, static_argnums=0)
def forward(model: Decoder, params, ids, valid):
    """As `torch_forward`, from ids."""
    variables = {"params": params}
    embeds = model.apply(variables, ids, method="embed")
    hidden = model.apply(variables, embeds, valid)
    return hidden, model.apply(variables, hidden, method="unembed")


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_equal_torch(oracle, case):
    ids, valid = ragged_batch()
    model, params = load_pretrained(oracle(case).directory)
    expected = torch_forward(oracle(case).model, valid, input_ids=torch.tensor(ids))
    for ours, theirs in zip(forward(model, params, ids, valid), expected, strict=True):
        np.testing.assert_allclose(
            ours[valid], theirs.numpy()[valid], rtol=TOLERANCE, atol=TOLERANCE
        )


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama", {"rope_theta": 20000.0}),
        ("qwen3", {"rope_theta": 20000.0}),
        ("qwen3-window", {"window": None, "sliding_layers": ()}),
        ("gemma3", {"rope_theta": 2e6}),
        ("gemma3", {"local_rope_theta": 2e4}),
        ("gemma3", {"window": None, "sliding_layers": (), "local_rope_theta": None}),
    ],
)
def test_tolerance_notices_a_wrong_decoder(oracle, case, change):
    ids, valid = ragged_batch()
    model, params = load_pretrained(oracle(case).directory)
    wrong = Decoder(dataclasses.replace(model.config, **change))
    expected, _ = torch_forward(oracle(case).model, valid, input_ids=torch.tensor(ids))
    hidden, _ = forward(wrong, params, ids, valid)
    assert np.abs(hidden[valid] - expected.numpy()[valid]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_gradients_of_input_embeddings_equal_torch(oracle, case):
    ids, valid = ragged_batch()
    model, params = load_pretrained(oracle(case).directory)
    embeds = np.array(model.apply({"params": params}, ids, method="embed"))
    weights = np.random.default_rng(1).normal(size=embeds.shape).astype(np.float32)
    weights *= valid[:, :, None]  # what comes out of pads is nobody's

    @jax.jit
    def gradient(embeds, params):
        return jax.grad(
            lambda e: jnp.sum(weights * model.apply({"params": params}, e, valid)),
        )(embeds)

    ours = gradient(embeds, params)
    leaf = torch.tensor(embeds, requires_grad=True)
    hidden, _ = torch_forward(oracle(case).model, valid, inputs_embeds=leaf)
    (hidden * torch.tensor(weights)).sum().backward()
    scale = np.abs(leaf.grad.numpy()).max()
    np.testing.assert_allclose(ours / scale, leaf.grad.numpy() / scale, atol=TOLERANCE)
    assert scale > 1.0
    assert not np.any(ours[~valid])


@functools.partial(jax.jit, static_argnums=0)
def advance(model: Decoder, params, embeds, valid, cache):
    """Reads, picks the likeliest next ids [B], and embeds them [B, 1, D]."""
    variables = {"params": params}
    hidden, cache = model.apply(variables, embeds, valid, cache)
    ids = jnp.argmax(model.apply(variables, hidden[:, -1:], method="unembed"), axis=-1)
    return ids[:, 0], model.apply(variables, ids, method="embed"), cache


def greedy(model: Decoder, params, embeds, valid, steps: int, eos: int | None, pad: int):
    """New ids [B, steps] by cached single steps; after `eos` a row holds `pad`, as in torch."""
    batch, time, _ = embeds.shape
    cache = empty_cache(model.config, batch, time + steps)
    done = np.zeros(batch, bool)
    new = []
    for _ in range(steps):
        ids, embeds, cache = advance(model, params, embeds, valid, cache)
        new.append(np.where(done, pad, ids))
        done |= new[-1] == eos
        valid = np.ones((batch, 1), bool)
    return np.stack(new, axis=1)


@pytest.mark.parametrize("case", FAMILIES)
def test_greedy_text_equals_torch(oracle, case):
    steps, pad = 12, 0
    ids, valid = ragged_batch(seed=2)
    theirs = oracle(case).model
    model, params = load_pretrained(oracle(case).directory)
    options = {"do_sample": False, "max_new_tokens": steps, "pad_token_id": pad}
    mask = torch.tensor(valid).long()
    embeds = model.apply({"params": params}, ids, method="embed")

    free = theirs.generate(torch.tensor(ids), attention_mask=mask, **options)
    free = free.numpy()[:, ids.shape[1] :]
    np.testing.assert_array_equal(greedy(model, params, embeds, valid, steps, None, pad), free)
    assert len(np.unique(free)) > 3  # not one token for ever

    eos = int(free[0, steps // 2])  # a token that is spoken, so that some row stops early
    stopped = theirs.generate(
        torch.tensor(ids), attention_mask=mask, eos_token_id=eos, **options
    ).numpy()[:, ids.shape[1] :]
    ours = greedy(model, params, embeds, valid, steps, eos, pad)
    np.testing.assert_array_equal(ours[:, : stopped.shape[1]], stopped)
    assert np.all(ours[:, stopped.shape[1] :] == pad)
    assert np.any(ours != free)

    # Embeddings that no token has, as latent thoughts are. Gemma scales token embeddings only, in
    # torch too, so both sides are given the same vectors.
    noise = np.random.default_rng(3).normal(size=embeds.shape).astype(np.float32)
    latents = np.array(embeds) * np.float32(0.7) + noise * np.float32(0.3)
    from_latents = theirs.generate(
        inputs_embeds=torch.tensor(latents), attention_mask=mask, **options
    ).numpy()
    ours = greedy(model, params, jnp.asarray(latents), valid, steps, None, pad)
    np.testing.assert_array_equal(ours, from_latents)


def test_bfloat16_is_as_near_to_float32_as_torch(oracle):
    ids, valid = ragged_batch()
    exact, _ = torch_forward(oracle("gemma3").model, valid, input_ids=torch.tensor(ids))
    model, params = load_pretrained(oracle("gemma3").directory, dtype="bfloat16")
    hidden, logits = forward(model, params, ids, valid)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    half = type(oracle("gemma3").model).from_pretrained(
        oracle("gemma3").directory, dtype=torch.bfloat16, attn_implementation="eager"
    )
    theirs, _ = torch_forward(half, valid, input_ids=torch.tensor(ids))

    def error(hidden):
        return np.abs(np.asarray(hidden, np.float32)[valid] - exact.numpy()[valid]).mean()

    assert error(hidden) < 1.5 * error(theirs.detach().float())
