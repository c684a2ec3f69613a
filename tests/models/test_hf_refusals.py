"""What is refused of a checkpoint, each in one message: configurations, weights, files."""

from __future__ import annotations

import dataclasses
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import WEIGHTS, edit_config, edit_weights, shard

from rmas_jax.models import (
    CheckpointError,
    UnsupportedModelError,
    load_pretrained,
    save_pretrained,
)
from rmas_jax.models.config import config_to_hf


@pytest.fixture
def copy(oracle, tmp_path):
    """A private copy of a checkpoint, to be damaged."""

    def build(case: str = "llama"):
        return shutil.copytree(oracle(case).directory, tmp_path / "copy")

    return build


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("llama", {"model_type": "mamba"}, "model_type must .*llama.*got 'mamba'"),
        ("llama", {"model_type": ...}, "model_type must .*got None"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_type='yarn': factor must .*got nothing",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear"}, "rope_parameters": ...},
            "'linear': factor must .*got nothing",
        ),
        ("llama", {"hidden_act": "mish"}, "hidden_act must .*silu.*got 'mish'"),
        ("llama", {"hidden_size": ...}, "hidden_size must be .*, got nothing"),
        ("llama", {"hidden_size": "big"}, "hidden_size must .*got 'big'"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers must .*got 0"),
        ("llama", {"num_attention_heads": 0, "head_dim": ...}, "num_attention_heads must .*got 0"),
        ("gemma3", {"hidden_size": "big"}, "hidden_size must .*got 'big'"),
        ("llama", {"head_dim": 7}, "head_dim must .*got 7"),
        ("llama", {"num_key_value_heads": 3}, r"multiple of num_key_value_heads \(3\), got 4"),
        (
            "llama",
            {"quantization_config": {"bits": 4}},
            "quantization_config must .*got {'bits': 4}",
        ),
        ("qwen3-window", {"use_sliding_window": False}, "sliding_window must .*got None"),
        ("qwen3-window", {"layer_types": ["full_attention"]}, "layer_types must .*got 1"),
        (
            "qwen3",
            {"layer_types": ["chunked_attention"] * 3},
            "layer_types must .*got .*'chunked_attention'",
        ),
        ("gemma3", {"sliding_window": None}, "sliding_window must .*got None"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping must .*got 30.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must .*got 50.0"),
        (
            "gemma3",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention must .*got True",
        ),
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
        f"{directory}: the weights must be those of qwen3",
        "missing: model.layers.1.mlp.up_proj.weight",
        "unexpected: model.layers.7.mlp.up_proj.weight",
        "misshapen: model.norm.weight must be (32,), got (5,)",
        "dtype: lm_head.weight must be in",
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


def test_missing_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*no such directory"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no-owner/no-model.*not available from the hub"):
        load_pretrained("no-owner/no-model")


def test_file_instead_of_directory(copy):
    with pytest.raises(CheckpointError, match="got a file"):
        load_pretrained(copy() / WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"{", "must be JSON"),
        (b"", "must be JSON"),
        (b"\xff\xfe", "must be text in UTF-8"),
        (b"[1]", "must be a JSON object, got a list"),
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
    with pytest.raises(CheckpointError, match=f"must have {WEIGHTS} or"):
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
    with pytest.raises(ValueError, match=r"dtype must be one of float32, .*, got 'int8'"):
        load_pretrained(oracle("llama").directory, dtype="int8")


def test_saving_refuses_params_of_another_model(oracle, tmp_path):
    model, params = load_pretrained(oracle("qwen3").directory)
    other = {name: value for name, value in params.items() if name != "unembed_kernel"}
    other["embedding"] = params["embedding"][:5]
    other["extra"] = params["embedding"]
    with pytest.raises(CheckpointError) as error:
        save_pretrained(tmp_path / "new", model, other)
    for line in ("missing: unembed_kernel", "unexpected: extra", "(61, 32), got (5, 32)"):
        assert line in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change", [{"embed_scale": 2.0}, {"qkv_bias": True}, {"query_scale": 0.3}, {"model_type": "x"}]
)
def test_saving_refuses_what_the_family_cannot_express(oracle, change):
    model, _ = load_pretrained(oracle("gemma3").directory)
    ((field, value),) = change.items()
    with pytest.raises(
        UnsupportedModelError, match=f"got {field}={value!r}$|{field} must .*got {value!r}"
    ):
        config_to_hf(dataclasses.replace(model.config, **change))
