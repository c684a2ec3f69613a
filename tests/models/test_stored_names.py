"""Checkpoints as other tools leave them: loaded as transformers loads them, or refused by name."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from checkpoint_files import WEIGHTS, edit_weights, shard
from oracles import build_torch_model
from tokenizers import Tokenizer, models, pre_tokenizers

from rmas_jax.cli.model import main
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.models import (
    CheckpointError,
    Decoder,
    DecoderConfig,
    UnsupportedModelError,
    load_pretrained,
    load_tokenizer,
    save_pretrained,
)

IDS = np.array([[5, 3, 8, 1, 40, 2, 9]])
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Function from a case to a directory with its checkpoint."""
    directories = {}

    def build(case):
        if case not in directories:
            directories[case] = tmp_path_factory.mktemp(case)
            build_torch_model(case).save_pretrained(directories[case])
        return directories[case]

    return build


@pytest.fixture
def copy(saved, tmp_path):
    return lambda case: shutil.copytree(saved(case), tmp_path / "copy")


def logits_of(directory):
    model, params = load_pretrained(directory)

    def run(params):
        embeds = model.apply({"params": params}, IDS, method="embed")
        hidden = model.apply({"params": params}, embeds, np.ones(IDS.shape, bool))
        return model.apply({"params": params}, hidden, method="unembed")

    return np.asarray(jax.jit(run)(params))


def torch_logits(directory):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return theirs(torch.tensor(IDS)).logits.numpy()


def without_model(directory):
    """As AutoModel saves them, with the projection beside where there is one."""

    def rename(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_weights(directory, rename)


def as_float64(directory):
    edit_weights(
        directory, lambda tensors: tensors.update({n: x.astype(float) for n, x in tensors.items()})
    )


def harmless_tensors(directory):
    """Buffers of older files, and heads that read the last hidden state."""
    names = ("model.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.position_ids")
    names += tuple(
        f"model.layers.1.self_attn.{name}"
        for name in ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "masked_bias")
    )
    names += ("v_head.summary.weight", "v_head.summary.bias", "value_head.0.weight", "score.weight")
    edit_weights(
        directory, lambda tensors: tensors.update({n: np.ones(3, np.float32) for n in names})
    )


def shards_in_folders(directory):
    files = shard(directory, parts=3)
    raw = json.loads((directory / INDEX).read_text())
    for i, file in enumerate(files[:2]):
        (directory / "parts" / str(i)).mkdir(parents=True)
        (directory / file).rename(directory / "parts" / str(i) / file)
        raw["weight_map"] = {
            name: f"parts/{i}/{file}" if home == file else home
            for name, home in raw["weight_map"].items()
        }
    (directory / INDEX).write_text(json.dumps(raw))


def consolidated_beside(directory):
    """Mistral's own file, which holds the same under other names."""
    shard(directory)
    other = {"layers.0.attention.wq.weight": np.full((4, 4), np.nan, np.float32)}
    safetensors.numpy.save_file(other, directory / "consolidated.safetensors")
    (directory / "consolidated.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize("case", ["llama", "qwen3"], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "change",
    [without_model, as_float64, harmless_tensors, shards_in_folders, consolidated_beside],
    ids=lambda change: change.__name__,
)
def test_they_load_as_in_transformers(saved, copy, case, change):
    directory = copy(case)
    change(directory)
    expected = torch_logits(directory)
    np.testing.assert_array_equal(expected, torch_logits(saved(case)))
    np.testing.assert_allclose(logits_of(directory), expected, rtol=1e-4, atol=1e-4)


def test_a_tensor_that_is_not_read_would_show(saved, copy):
    """The control: one norm of one layer moves the logits."""
    directory = copy("llama")
    name = "model.layers.1.input_layernorm.weight"
    edit_weights(directory, lambda tensors: tensors[name].__imul__(1.5))
    assert np.abs(logits_of(directory) - torch_logits(saved("llama"))).max() > 0.1


def test_a_base_model_without_its_projection_is_refused(copy):
    """Transformers draws a random one."""
    directory = copy("qwen3")
    without_model(directory)
    edit_weights(directory, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"\n  missing: lm_head\.weight$"):
        load_pretrained(directory)


def test_folders_of_a_hub_repository_are_fetched(saved, copy, monkeypatch):
    directory = copy("llama")
    shards_in_folders(directory)
    hidden = directory.with_name("hidden")
    (directory / "parts").rename(hidden)
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((revision, allow_patterns))
        if any("parts/0/" in pattern for pattern in allow_patterns):
            hidden.rename(directory / "parts")
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load_pretrained("owner/tiny", revision="abc")
    assert [revision for revision, _ in asked] == ["abc"] * 2
    assert asked[1][1][1:] == [f"parts/{i}/model-{i + 1:05}-of-00003.safetensors" for i in range(2)]


@pytest.mark.parametrize(
    ("names", "dtype", "words"),
    [
        (["model.layers.0.mlp.up_proj.qweight"], np.int32, "quantised: .*qweight"),
        (["model.layers.0.mlp.up_proj.weight_scale_inv"], np.float32, "quantised: .*scale_inv"),
        (["model.layers.0.mlp.up_proj.weight.absmax"], np.float32, "quantised: .*absmax"),
        (["model.layers.0.mlp.up_proj.lora_A.weight"], np.float32, "unexpected: .*lora_A"),
        (["lm_head.bias"], np.float32, "unexpected: lm_head.bias"),
        (["model.layers.0.self_attn.q_proj.bias"], np.float32, "unexpected: .*q_proj.bias"),
    ],
)
def test_what_changes_the_model_is_refused_by_name(copy, names, dtype, words):
    directory = copy("llama")
    edit_weights(directory, lambda tensors: tensors.update({n: np.ones(3, dtype) for n in names}))
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(directory)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, bool, np.complex64])
def test_weights_of_other_kinds_are_refused_by_name(copy, dtype):
    directory = copy("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(directory, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))
    with pytest.raises(CheckpointError, match=rf"dtype: {name} must be in .*F64.*, got "):
        load_pretrained(directory)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_not_left_out_without_a_word(copy, alone):
    """Transformers, with PEFT, puts it onto the model that it loads."""
    directory = copy("llama")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 16}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    if alone:
        (directory / "config.json").unlink()
        (directory / WEIGHTS).rename(directory / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: .*'LORA'.*merge_and_unload"):
        load_pretrained(directory)
    if not alone:  # that of a link, as releases have it
        (directory / "adapter_config.json").write_text('{"adapter_type": "ln_res_adapter"}')
        load_pretrained(directory)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", WEIGHTS])
def test_what_git_lfs_has_not_fetched_is_named(copy, file):
    directory = copy("llama")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    for unread in ("pytorch_model.bin", "tokenizer.model", "model.fp16.safetensors"):
        (directory / unread).write_text(pointer)
    load_pretrained(directory)
    (directory / file).write_text(pointer)
    with pytest.raises(CheckpointError, match=f"{file}: is a pointer of git-lfs"):
        load_tokenizer(directory) if file.startswith("tok") else load_pretrained(directory)


def test_weights_of_torch_alone_are_pointed_to(copy):
    directory = copy("llama")
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, torch's format: convert it"):
        load_pretrained(directory)


# --- Numbers that a dtype cannot hold -------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "dtype", "value"),
    [
        (np.float32, "float16", 7e4),
        (np.float64, "float32", 1e39),
        (np.float64, "bfloat16", -1e39),
        (np.float32, "float16", np.nan),
    ],
)
def test_weights_beyond_the_range_of_a_dtype_are_named(copy, stored, dtype, value):
    directory = copy("llama")
    name = "model.layers.1.mlp.up_proj.weight"

    def enlarge(tensors):
        tensors[name] = tensors[name].astype(stored)
        tensors[name][3, 2] = value

    edit_weights(directory, enlarge)
    with pytest.raises(
        CheckpointError, match=rf"{name} must be finite in {dtype} .*, got NaN or larger"
    ):
        load_pretrained(directory, dtype)
    if stored is np.float32:
        load_pretrained(directory, "bfloat16")


def test_gemma3_is_not_run_in_float16(copy):
    directory = copy("gemma3")
    (directory / WEIGHTS).write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match=r"gemma3_text must .* got 'float16'.*65,504"):
        load_pretrained(directory, "float16")


def test_states_that_leave_float16_end_the_command(tmp_path, capsys):
    """The sum of the layers grows past 65,504; bfloat16 holds it."""
    sizes = {"vocab_size": 37, "width": 8, "ffn_width": 8, "num_layers": 1, "head_dim": 4}
    config = DecoderConfig("llama", num_heads=2, num_kv_heads=2, rope_theta=1e4, **sizes)
    model = Decoder(config)
    params = model.init(jax.random.key(0), np.zeros((1, 1, 8), np.float32), np.ones((1, 1), bool))[
        "params"
    ]
    params = jax.tree.map(lambda x: x * 0 + 60, params)
    save_pretrained(tmp_path, model, params)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    tokenizer.save_pretrained(tmp_path)
    common = [str(tmp_path), "--raw", "--prompt", "w3 w4", "--max-tokens", "2", "--dtype"]
    assert main([*common, "float16"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert "exceed the range of float16" in said and said.count("\n") == 1
    assert main([*common, "bfloat16"]) == 0
