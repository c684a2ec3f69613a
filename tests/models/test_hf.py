"""Checkpoints in and out of Hugging Face directories, and everything that is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from oracles import CASES

from rmas_jax.models import (
    CheckpointError,
    Decoder,
    UnsupportedModelError,
    config_from_hf,
    load_pretrained,
    save_pretrained,
)
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.weights import PREFIXES

WEIGHTS = "model.safetensors"
IDS = np.array([[5, 3, 8, 1, 40, 2, 9]])


@pytest.fixture
def copy(oracle, tmp_path):
    """A private copy of a checkpoint, to be damaged."""

    def build(case: str = "llama"):
        return shutil.copytree(oracle(case).directory, tmp_path / "copy")

    return build


def edit_config(directory, **changes):
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def edit_weights(directory, edit):
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    edit(tensors)
    safetensors.numpy.save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def shard(directory, parts=2):
    """Rewrites a checkpoint as shards with an index; returns the names of the shards."""
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    files = [f"model-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
    weight_map = {name: files[i % parts] for i, name in enumerate(sorted(tensors))}
    for file in files:
        safetensors.numpy.save_file(
            {name: tensors[name] for name, home in weight_map.items() if home == file},
            directory / file,
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def assert_same_params(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


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
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16}')
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


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("llama", {"model_type": "mamba"}, "model_type='mamba'.*llama"),
        ("llama", {"model_type": ...}, "model_type=None"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'.*'factor'"),
        ("llama", {"rope_scaling": {"type": "linear"}, "rope_parameters": ...}, "'linear'"),
        ("llama", {"hidden_act": "mish"}, "hidden_act='mish'.*silu"),
        ("llama", {"hidden_size": ...}, "'hidden_size' is missing"),
        ("llama", {"hidden_size": "big"}, "hidden_size"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ("llama", {"num_attention_heads": 0, "head_dim": ...}, "num_attention_heads=0"),
        ("gemma3", {"hidden_size": "big"}, "hidden_size='big'"),
        ("llama", {"head_dim": 7}, "head_dim=7"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen3-window", {"use_sliding_window": False}, "sliding_window=None"),
        ("qwen3-window", {"layer_types": ["full_attention"]}, "layer_types names 1"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("gemma3", {"sliding_window": None}, "sliding_window=None"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ],
)
def test_unsupported_config_is_refused_before_weights_are_read(copy, case, change, message):
    directory = copy(case)
    edit_config(directory, **change)
    (directory / WEIGHTS).write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match=message) as error:
        load_pretrained(directory)
    assert str(directory / "config.json") in str(error.value)


def test_all_wrong_weights_are_listed_in_one_error(copy):
    directory = copy("qwen3")

    def damage(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.norm.weight"] = np.zeros(5, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int32)

    edit_weights(directory, damage)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(directory)
    for line in (
        f"{directory}: the weights do not fit qwen3",
        "missing: model.layers.1.mlp.up_proj.weight",
        "unexpected: model.layers.7.mlp.up_proj.weight",
        "misshapen: model.norm.weight is (5,), not (32,)",
        "dtype: lm_head.weight is I32",
    ):
        assert line in str(error.value)


def test_weight_in_two_shards_is_refused(copy):
    directory = copy()
    first, second = shard(directory)
    name = "model.norm.weight"
    tensors = [safetensors.numpy.load_file(directory / file) for file in (first, second)]
    both = tensors[0] | tensors[1]
    for file, held in zip((first, second), tensors, strict=True):
        safetensors.numpy.save_file(held | {name: both[name]}, directory / file)
    with pytest.raises(CheckpointError, match=f"duplicate: {name} is in {first}, {second}"):
        load_pretrained(directory)


def test_named_skips(oracle, copy):
    directory = copy()

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)

    edit_weights(directory, add)
    assert_same_params(load_pretrained(directory)[1], load_pretrained(oracle("llama").directory)[1])
    edit_weights(directory, lambda tensors: tensors["lm_head.weight"].__iadd__(1))
    with pytest.raises(CheckpointError, match=r"unexpected: lm_head\.weight, embeddings are tied"):
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


def test_missing_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*no such directory"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no-owner/no-model.*not available from the hub"):
        load_pretrained("no-owner/no-model")


def test_file_instead_of_directory(copy):
    with pytest.raises(CheckpointError, match="is a file"):
        load_pretrained(copy() / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"{", "not readable as JSON"),
        (b"", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[1]", "holds a list"),
    ],
)
def test_damaged_config(copy, content, message):
    path = copy() / "config.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        load_pretrained(path.parent)


DAMAGE = {
    "empty": lambda whole: b"",
    "header cut": lambda whole: whole[:20],
    "data cut": lambda whole: whole[:-1],
    "data added": lambda whole: whole + b"\0",
    "not safetensors": lambda whole: b"<html>" * 50,
    "header not JSON": lambda whole: struct.pack("<Q", 8) + b"{{{{{{{{",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_safetensors(copy, kind):
    path = copy() / WEIGHTS
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: not a whole safetensors file"):
        load_pretrained(path.parent)


def test_missing_safetensors(copy):
    directory = copy()
    (directory / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"holds neither {WEIGHTS} nor"):
        load_pretrained(directory)


def test_missing_shard(copy):
    directory = copy()
    _, second = shard(directory)
    (directory / second).unlink()
    with pytest.raises(CheckpointError, match=f"{second}: no such file"):
        load_pretrained(directory)


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "../b.safetensors"}}'])
def test_damaged_index(copy, index):
    directory = copy()
    shard(directory)
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json: "):
        load_pretrained(directory)


def test_unknown_dtype(oracle):
    with pytest.raises(ValueError, match="dtype='int8': allowed are"):
        load_pretrained(oracle("llama").directory, dtype="int8")


def test_saving_refuses_params_of_another_model(oracle, tmp_path):
    model, params = load_pretrained(oracle("qwen3").directory)
    other = {name: value for name, value in params.items() if name != "unembed_kernel"}
    other["embedding"] = params["embedding"][:5]
    other["extra"] = params["embedding"]
    with pytest.raises(CheckpointError) as error:
        save_pretrained(tmp_path / "new", model, other)
    for line in ("missing: unembed_kernel", "unexpected: extra", "misshapen: embedding is (5, 32)"):
        assert line in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change", [{"embed_scale": 2.0}, {"qkv_bias": True}, {"query_scale": 0.3}, {"model_type": "x"}]
)
def test_saving_refuses_what_the_family_cannot_express(oracle, change):
    model, _ = load_pretrained(oracle("gemma3").directory)
    with pytest.raises(UnsupportedModelError, match=next(iter(change))):
        config_to_hf(dataclasses.replace(model.config, **change))


def test_params_are_those_of_init(oracle):
    model, params = load_pretrained(oracle("gemma3").directory)
    assert isinstance(model, Decoder)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), np.zeros((1, 2, 32), np.float32), np.ones((1, 2), bool)
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes["params"])
