"""The decoders against transformers: hidden states, logits, gradients, greedy text."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from oracles import CASES, SIZES

from rmas_jax.models import Decoder, empty_cache, load_pretrained
from rmas_jax.models.rope import RopeScaling
from rmas_jax.models.stored_names import IGNORED, stored_prefix
from rmas_jax.models.weights import weight_table

TOLERANCE = 1e-4
# Each layer kind and option once.
FAMILIES = ["llama", "qwen3-window", "gemma3", "qwen3_5"]
LENGTHS = (11, 6, 1)  # of the rows of a left-padded batch; longer than any window


def test_exit_probabilities_of_a_looped_decoder(oracle):
    """A pass is left with the gate's probability, the last one in any case."""
    ids, valid = ragged_batch()
    theirs = oracle("ouro").model
    model, params = load_pretrained(oracle("ouro").directory)
    embeds = model.apply({"params": params}, ids, method="embed")
    ours = model.apply({"params": params}, embeds, valid, method="exit_probabilities")
    mask = torch.tensor(valid).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    after_passes = theirs(torch.tensor(ids), attention_mask=mask, position_ids=positions)
    gates = [
        torch.sigmoid(theirs.model.early_exit_gate(x))[..., 0].numpy()
        for x in after_passes.hidden_states
    ]
    first, second = gates[0], (1 - gates[0]) * gates[1]
    expected = np.stack([first, second, 1 - first - second], axis=-1)
    np.testing.assert_allclose(ours[valid], expected[valid], rtol=TOLERANCE, atol=TOLERANCE)
    assert np.ptp(expected[valid]) > 0.3
    dense, its_params = load_pretrained(oracle("llama").directory)
    with pytest.raises(ValueError, match=r"config\.loops must be a number for an exit gate"):
        dense.apply({"params": its_params}, embeds, valid, method="exit_probabilities")


# --- All families ---------------------------------------------------------------------------------


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
def test_packed_texts_equal_texts_alone(oracle, case):
    """Rows of several texts, whose borders fall within and between a linear layer's chunks."""
    lengths = [(6, 1, 30, 40), (7, 59, 3, 1), (64, 2)]  # of the texts of each row
    texts = np.zeros((len(lengths), 80), int)
    for row, of_row in zip(texts, lengths, strict=True):
        numbers = np.repeat(np.arange(len(of_row)) + 1, of_row)
        row[: len(numbers)] = numbers
    ids = np.random.default_rng(1).integers(1, 61, texts.shape)
    model, params = load_pretrained(oracle(case).directory)
    embeds = model.apply({"params": params}, ids, method="embed")
    read_packed = jax.jit(functools.partial(model.apply, method="read_packed"))
    packed = read_packed({"params": params}, embeds, texts)
    for row in range(len(texts)):
        for number in range(1, texts[row].max() + 1):
            alone = ids[row, texts[row] == number][None]
            expected, _ = torch_forward(
                oracle(case).model, np.ones_like(alone), input_ids=torch.tensor(alone)
            )
            np.testing.assert_allclose(
                packed[row, texts[row] == number], expected[0], rtol=TOLERANCE, atol=TOLERANCE
            )
    as_one = read_packed({"params": params}, embeds, (texts > 0).astype(int))
    second = texts == 2
    assert np.abs(packed[second] - as_one[second]).max() > 0.1  # what a lost border would do


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
        ("llama-llama3", {"rope_scaling": RopeScaling()}),
        ("qwen2-yarn", {"rope_scaling": RopeScaling()}),
        ("mistral-window", {"window": 5}),
        ("qwen3-window", {"window": None, "sliding_layers": ()}),
        ("gemma3", {"rope_theta": 2e6}),
        ("gemma3", {"local_rope_theta": 2e4}),
        ("gemma3", {"window": None, "sliding_layers": (), "local_rope_theta": None}),
        ("gemma3-linear", {"rope_scaling": RopeScaling("linear", 4.0)}),
        ("qwen3_5", {"rotary_fraction": 0.5}),
        ("ouro", {"loops": 2}),
    ],
)
def test_tolerance_notices_a_wrong_decoder(oracle, case, change):
    ids, valid = ragged_batch()
    model, params = load_pretrained(oracle(case).directory)
    wrong = Decoder(dataclasses.replace(model.config, **change))
    expected, _ = torch_forward(oracle(case).model, valid, input_ids=torch.tensor(ids))
    hidden, _ = forward(wrong, params, ids, valid)
    assert np.abs(hidden[valid] - expected.numpy()[valid]).max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    "case",
    ["llama", "gemma3", "qwen2-yarn", "qwen3-window", "mistral-window", "qwen3_5", "ouro"],
)
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


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("gemma3", "language_model.model."),  # as released, and as transformers saves it
        ("gemma3", "model.language_model."),
        ("qwen3_5", "model.language_model."),
    ],
)
def test_text_tower_of_a_checkpoint_with_vision(tmp_path, family, prefix):
    """The tower's configuration and weights alone give what the whole torch model gives."""
    text = CASES[{"gemma3": "gemma3-linear", "qwen3_5": "qwen3_5-tied"}[family]][1]
    vision = {
        "gemma3": {"model_type": "siglip_vision_model", "num_attention_heads": 2},
        "qwen3_5": {"num_heads": 2, "depth": 1, "out_hidden_size": 32},
    }[family]
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    ties = {"tie_word_embeddings": True}
    config = transformers.AutoConfig.for_model(
        family,
        text_config=SIZES | text | ties,
        vision_config=sizes | vision | {"patch_size": 4, "image_size": 8},
        **ties,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = transformers.AutoModelForImageTextToText.from_config(config).eval()
    theirs.requires_grad_(False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = safetensors.numpy.load_file(path)
    if stored_prefix(stored) != prefix:
        stored = {name: x.numpy() for name, x in theirs.state_dict().items()}
    assert stored_prefix(stored) == prefix
    if family == "qwen3_5":  # released files also hold layers for predicting several tokens
        stored["mtp.norm.weight"] = np.ones(32, np.float32)
    safetensors.numpy.save_file(stored, path, metadata={"format": "pt"})

    model, params = load_pretrained(tmp_path)
    ids, valid = ragged_batch()
    mask = torch.tensor(valid).long()
    expected = theirs.model.language_model(
        input_ids=torch.tensor(ids),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
    ).last_hidden_state
    expected = (expected, theirs.lm_head(expected))
    for a, b in zip(forward(model, params, ids, valid), expected, strict=True):
        np.testing.assert_allclose(a[valid], b.numpy()[valid], rtol=TOLERANCE, atol=TOLERANCE)
    names = [n for w in weight_table(model.config, prefix) for n in w.names]
    assert not any(IGNORED.fullmatch(name) for name in names)


@pytest.mark.parametrize("case", ["gemma3", "qwen3_5"])
def test_bfloat16_is_as_near_to_float32_as_torch(oracle, case):
    ids, valid = ragged_batch()
    exact, _ = torch_forward(oracle(case).model, valid, input_ids=torch.tensor(ids))
    model, params = load_pretrained(oracle(case).directory, dtype="bfloat16")
    hidden, logits = forward(model, params, ids, valid)
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    half = type(oracle(case).model).from_pretrained(
        oracle(case).directory, dtype=torch.bfloat16, attn_implementation="eager"
    )
    theirs, _ = torch_forward(half, valid, input_ids=torch.tensor(ids))

    def error(hidden):
        return np.abs(np.asarray(hidden, np.float32)[valid] - exact.numpy()[valid]).mean()

    assert error(hidden) < 1.5 * error(theirs.detach().float())
