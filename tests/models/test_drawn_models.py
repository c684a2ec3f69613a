"""Random models of every family, saved by transformers, against transformers' Auto classes."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from drawn import FAMILIES, draw_config
from oracles import OuroConfig

from rmas_jax.models import Decoder, config_from_hf, empty_cache, load_pretrained
from rmas_jax.models.rope import rotary_frequencies

TOLERANCE = 1e-4
STEPS = 8  # of greedy text
LENGTHS = (11, 6, 1)
QUICK, ALL = 12, 240
CONTROLLED = range(0, ALL, 5)  # draws that also show that a wrong decoder is noticed


def prompt(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] and valid [B, T], pads on the left."""
    time = max(LENGTHS)
    ids = np.random.default_rng(seed).integers(1, 50, (len(LENGTHS), time))
    valid = np.arange(time)[None, :] >= time - np.array(LENGTHS)[:, None]
    return np.where(valid, ids, 0), valid


def torch_model(raw: dict, seed: int, directory) -> transformers.PreTrainedModel:
    """What the Auto classes make of a file, with norms and biases that are not all alike."""
    (directory / "config.json").write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(directory)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def torch_read(model, ids, valid):
    """Hidden states after the final norm and logits, for the torch tensors of a whole text."""
    mask = valid.long()
    out = model(
        ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        output_hidden_states=True,
    )
    return out.hidden_states[-1], out.logits


def torch_write(model, ids, valid) -> np.ndarray:
    """Greedy ids [B, STEPS], by `generate` where the model has a cache."""
    if not isinstance(model.config, OuroConfig):
        return model.generate(
            ids,
            attention_mask=valid.long(),
            do_sample=False,
            max_new_tokens=STEPS,
            pad_token_id=0,
        ).numpy()[:, ids.shape[1] :]
    for _ in range(STEPS):
        new = torch_read(model, ids, valid)[1][:, -1:].argmax(-1)
        ids, valid = torch.cat([ids, new], 1), torch.cat([valid, torch.ones_like(new) > 0], 1)
    return ids.numpy()[:, -STEPS:]


def jax_read_and_write(model: Decoder, params, ids, valid):
    """As `torch_read` and `torch_write`, in one program, by cached steps."""
    variables = {"params": params}

    def logits_of(hidden):
        return model.apply(variables, hidden, method="unembed")

    batch, time = ids.shape
    embeds = model.apply(variables, ids, method="embed")
    cache = empty_cache(model.config, batch, time + STEPS)
    hidden, cache = model.apply(variables, embeds, valid, cache)
    logits = logits_of(hidden)

    def step(carry, _):
        ids, cache = carry
        embeds = model.apply(variables, ids[:, None], method="embed")
        hidden, cache = model.apply(variables, embeds, jnp.ones((batch, 1), bool), cache)
        new = jnp.argmax(logits_of(hidden)[:, 0], axis=-1)
        return (new, cache), ids

    first = jnp.argmax(logits[:, -1], axis=-1)
    _, text = jax.lax.scan(step, (first, cache), length=STEPS)
    return hidden, logits, text.T


def wrong_configs(config):
    """Other decoders of the same parameters, near enough to be taken for this one."""
    local = config.local_rope_theta and 2 * config.local_rope_theta
    doubled = dataclasses.replace(config, rope_theta=2 * config.rope_theta, local_rope_theta=local)
    before, after = (
        rotary_frequencies(c.rope_theta, c.rotated_dim, c.rope_scaling) for c in (config, doubled)
    )
    reach = max(LENGTHS) if not all(config.sliding_layers) else config.window or max(LENGTHS)
    if np.abs(before - after).max() * reach > 0.3:  # else texts this short hardly turn otherwise
        yield doubled
    if config.window is not None and config.window < 6:
        flipped = (not config.sliding_layers[0], *config.sliding_layers[1:])
        yield dataclasses.replace(config, sliding_layers=flipped)


def check_draw(seed: int, tmp_path) -> None:
    raw = draw_config(seed)
    print(f"draw {seed}: {json.dumps(raw)}")  # shown when the test fails
    (tmp_path / "given").mkdir()
    theirs = torch_model(raw, seed, tmp_path / "given")
    theirs.save_pretrained(tmp_path / "saved")
    model, params = load_pretrained(tmp_path / "saved")
    assert model.config == config_from_hf(raw)  # transformers writes other fields than it reads

    ids, valid = prompt(seed)
    torch_ids, torch_valid = torch.tensor(ids), torch.tensor(valid)
    expected = [x.numpy() for x in torch_read(theirs, torch_ids, torch_valid)]
    read_and_write = jax.jit(jax_read_and_write, static_argnums=0)
    *ours, text = read_and_write(model, params, ids, valid)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a[valid], b[valid], rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(text, torch_write(theirs, torch_ids, torch_valid))
    if seed in CONTROLLED:
        for wrong in wrong_configs(model.config):
            hidden, *_ = read_and_write(Decoder(wrong), params, ids, valid)
            assert np.abs(hidden[valid] - expected[0][valid]).max() > 1e-2, wrong
    jax.clear_caches()


@pytest.mark.parametrize("seed", range(QUICK))
def test_drawn_model_equals_transformers(seed, tmp_path):
    check_draw(seed, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(QUICK, ALL))
def test_drawn_model_equals_transformers_at_length(seed, tmp_path):
    check_draw(seed, tmp_path)


def test_draws_cover_all_families_and_kinds_of_rotation():
    drawn = [draw_config(seed) for seed in range(ALL)]
    configs = [config_from_hf(raw) for raw in drawn]
    assert {c.model_type for c in configs} == set(FAMILIES)
    assert {c.rope_scaling.kind for c in configs} == {
        *("default", "linear", "llama3", "yarn", "dynamic", "longrope")
    }
    for option in ("qkv_bias", "out_bias", "ffn_bias", "tie_embeddings"):
        assert {getattr(c, option) for c in configs} == {True, False}
    assert {c.activation for c in configs} == {"silu", "gelu", "gelu_tanh", "relu"}
    assert any(len(set(c.sliding_layers)) == 2 for c in configs)
    assert any(len(set(c.linear_layers)) == 2 for c in configs)
    assert sum(any(True for _ in wrong_configs(configs[seed])) for seed in CONTROLLED) > 20
