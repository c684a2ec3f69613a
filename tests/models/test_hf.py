"""Checkpoints in and out of Hugging Face directories, and everything that is refused."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from checkpoint_files import WEIGHTS, assert_same_params, edit_weights, shard
from oracles import CASES

from rmas_jax.models import (
    CheckpointError,
    Decoder,
    config_from_hf,
    load_pretrained,
    save_pretrained,
)
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.stored_names import PREFIXES

IDS = np.array([[5, 3, 8, 1, 40, 2, 9]])


@pytest.fixture
def copy(oracle, tmp_path):
    """A private copy of a checkpoint, to be damaged."""

    def build(case: str = "llama"):
        return shutil.copytree(oracle(case).directory, tmp_path / "copy")

    return build


@pytest.mark.parametrize("case", CASES)
def test_saved_model_agrees_in_torch_and_loads_back_bitwise(oracle, tmp_path, case):
    model, params = load_pretrained(oracle(case).directory)
    save_pretrained(tmp_path, model, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", WEIGHTS]

    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        again = theirs(torch.tensor(IDS)).logits.numpy()
        first = oracle(case).model(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_array_equal(again, first)

    model_again, params_again = load_pretrained(tmp_path)
    assert model_again.config == model.config
    assert_same_params(params_again, params)


def test_saved_model_agrees_after_an_update(oracle, tmp_path):
    model, params = load_pretrained(oracle("qwen3").directory)
    params = jax.tree.map(lambda x: x * 1.25, params)
    save_pretrained(tmp_path, model, params)
    embeds = model.apply({"params": params}, IDS, method="embed")
    hidden = jax.jit(model.apply)({"params": params}, embeds, np.ones(IDS.shape, bool))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(hidden, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_exact(oracle, copy, tmp_path):
    directory = copy()
    stored = {}

    def halve(tensors):
        for name in tensors:
            tensors[name] = stored[name] = tensors[name].astype(ml_dtypes.bfloat16)

    edit_weights(directory, halve)
    _, wide = load_pretrained(directory)
    model, params = load_pretrained(directory, dtype="bfloat16")
    np.testing.assert_array_equal(params["embedding"], stored["model.embed_tokens.weight"])
    for exact, upcast in zip(jax.tree.leaves(params), jax.tree.leaves(wide), strict=True):
        assert exact.dtype == ml_dtypes.bfloat16
        assert upcast.dtype == np.float32
        np.testing.assert_array_equal(exact.astype(np.float32), upcast)
    save_pretrained(tmp_path / "saved", model, params)
    saved = safetensors.numpy.load_file(tmp_path / "saved" / WEIGHTS)
    assert saved.keys() == stored.keys()
    for name, tensor in stored.items():
        assert saved[name].dtype == tensor.dtype
        np.testing.assert_array_equal(saved[name], tensor)
    raw = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert raw["dtype"] == "bfloat16"


def test_saving_keeps_extra_fields(oracle, tmp_path):
    model, params = load_pretrained(oracle("llama").directory)
    save_pretrained(tmp_path, model, params, extra={"eos_token_id": 7, "hidden_size": 1})
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.eos_token_id == 7
    assert config.hidden_size == model.config.width  # what the decoder knows is not overruled


def test_shards_equal_one_file(oracle, copy):
    directory = copy("gemma3")
    shard(directory, parts=3)
    _, params = load_pretrained(directory)
    assert_same_params(params, load_pretrained(oracle("gemma3").directory)[1])


def test_other_files_do_not_disturb(oracle, copy):
    """Files of PEFT and of RecursiveMAS, which stand beside the weights of released roles."""
    directory = copy()
    (directory / "adapter_config.json").write_text('{"adapter_type": "ln_res_adapter"}')
    (directory / "adapter_model.safetensors").write_text("junk")
    (directory / "innerlink_config.json").write_text('{"hidden_size": 1, "num_hidden_layers": 1}')
    (directory / "outerlink_config.json").write_text("{not json")
    (directory / "adapter.pt").write_bytes(b"junk")
    (directory / "pytorch_model.bin").write_bytes(b"junk")
    assert_same_params(load_pretrained(directory)[1], load_pretrained(oracle("llama").directory)[1])


def test_hub_id_is_fetched_at_its_revision(oracle, monkeypatch):
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision))
        return str(oracle("llama").directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load_pretrained("owner/tiny", revision="abc")
    assert asked == [("owner/tiny", "abc")]


@pytest.mark.parametrize("case", ["llama", "qwen3", "qwen3-window", "gemma3", "gemma3-mqa-untied"])
def test_config_reads_old_and_new_files_alike(oracle, case):
    raw = json.loads((oracle(case).directory / "config.json").read_text())
    config = config_from_hf(raw)
    assert config_from_hf(config_to_hf(config)) == config

    old = dict(raw)
    rope = old.pop("rope_parameters")
    if case.startswith("gemma3"):
        old["rope_theta"] = rope["full_attention"]["rope_theta"]
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    else:
        old["rope_theta"] = rope["rope_theta"]
        old["rope_scaling"] = None
    assert config_from_hf(old) == config
    assert config_from_hf(old | {"rope_theta": 12345.0}).rope_theta == 12345.0


def test_layer_kinds_of_older_files():
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    gemma = config_from_hf(sizes | {"model_type": "gemma3_text", "sliding_window_pattern": 2})
    assert gemma.sliding_layers == (True, False, True)
    assert (gemma.head_dim, gemma.window, gemma.activation) == (256, 4096, "gelu_tanh")
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    qwen = config_from_hf(sizes | {"model_type": "qwen3"} | windows)
    assert (qwen.sliding_layers, qwen.window) == ((False, True, True), 5)
    qwen = config_from_hf(sizes | {"model_type": "qwen3", "sliding_window": 5})
    assert (qwen.sliding_layers, qwen.window) == ((), None)
    for raw in (sizes | {"model_type": "gemma3_text"}, sizes | {"model_type": "qwen3"} | windows):
        theirs = transformers.AutoConfig.for_model(**raw)
        slides = tuple(kind == "sliding_attention" for kind in theirs.layer_types)
        ours = config_from_hf(raw)
        assert ours.sliding_layers == slides
        assert (ours.head_dim, ours.window) == (theirs.head_dim, theirs.sliding_window)


def test_named_skips(oracle, copy):
    directory = copy()

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)

    edit_weights(directory, add)
    assert_same_params(load_pretrained(directory)[1], load_pretrained(oracle("llama").directory)[1])
    edit_weights(directory, lambda tensors: tensors["lm_head.weight"].__iadd__(1))
    with pytest.raises(
        CheckpointError, match=r"unexpected: lm_head\.weight, which differs from the tied emb"
    ):
        load_pretrained(directory)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_text_tower_of_a_checkpoint_with_vision(oracle, copy, prefix):
    directory = copy("gemma3-mqa-untied")

    def rename(tensors):
        for name in list(tensors):
            new = name.replace("model.", prefix, 1).replace("lm_head", PREFIXES[prefix] + "lm_head")
            tensors[new] = tensors.pop(name)
        for name in ("vision_tower.patch.weight", "model.visual.blocks.0.bias", "mtp.norm.weight"):
            tensors[name] = np.zeros(3, np.float32)

    edit_weights(directory, rename)
    expected = load_pretrained(oracle("gemma3-mqa-untied").directory)[1]
    assert_same_params(load_pretrained(directory)[1], expected)
    edit_weights(directory, lambda tensors: tensors.pop(prefix + "norm.weight"))
    with pytest.raises(CheckpointError, match=rf"\n  missing: {prefix}norm\.weight$"):
        load_pretrained(directory)


def test_params_are_those_of_init(oracle):
    model, params = load_pretrained(oracle("gemma3").directory)
    assert isinstance(model, Decoder)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), np.zeros((1, 2, 32), np.float32), np.ones((1, 2), bool)
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes["params"])
