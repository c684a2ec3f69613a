"""GGUF files against the torch models that they were written from, and everything refused."""

from __future__ import annotations

import functools
import shutil
import sys
import tracemalloc
from pathlib import Path

import gguf
import huggingface_hub
import jax
import numpy as np
import pytest
import torch
from checkpoint_files import assert_same_params
from gguf_files import byte_level_fields, permuted, random_blocks, write_gguf
from oracles import build_torch_model

from rmas_jax.cli.model import main
from rmas_jax.config import load_config
from rmas_jax.models import (
    CheckpointError,
    UnsupportedModelError,
    abstract_agent,
    gguf_header,
    gguf_tensors,
    load_pretrained,
)
from rmas_jax.models import checkpoint as checkpoints
from rmas_jax.models.checkpoint import read_config
from rmas_jax.models.gguf import gguf_changes
from rmas_jax.models.gguf_blocks import KINDS
from rmas_jax.models.gguf_tensors import Change
from rmas_jax.models.weights import weight_table
from rmas_jax.sharding import make_mesh
from rmas_jax.team import load_team

TOLERANCE = 1e-4
PLANNER = Path(__file__).parents[2] / "rmas_jax/assets/embedded/planner"
# Case of `oracles.CASES` -> changes, where llama.cpp cannot express it.
CASES = {
    "llama": {},
    "llama-mqa-untied": {},
    "llama-biases": {"hidden_act": "silu"},
    "llama-llama3": {},
    "mistral": {},
    "qwen2": {},
    "qwen2-yarn": {},
    "qwen3": {},
    "qwen3-tied": {},
    "gemma3": {"query_pre_attn_scalar": 12},
    "gemma3-linear": {},
    "qwen3_5": {},
    "qwen3_5-tied": {},
}
IDS = np.random.default_rng(0).integers(1, 61, (2, 12))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Function from a case to its torch model, and the file that was converted from it."""
    built = {}

    def build(case):
        if case not in built:
            model = build_torch_model(case, **CASES[case])
            directory = tmp_path_factory.mktemp(case)
            model.save_pretrained(directory)
            built[case] = model, write_gguf(directory / "model.gguf", directory)
        return built[case]

    return build


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, ids):
    """Hidden states after the final norm, and logits."""
    embeds = model.apply({"params": params}, ids, method="embed")
    hidden = model.apply({"params": params}, embeds, np.ones(ids.shape, bool))
    return hidden, model.apply({"params": params}, hidden, method="unembed")


def torch_forward(model, ids):
    out = model(torch.tensor(ids), output_hidden_states=True)
    return out.hidden_states[-1].numpy(), out.logits.numpy()


# --- Parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits_equal_torch(made, case):
    theirs, path = made(case)
    ours = forward(*load_pretrained(path), IDS)
    for mine, expected in zip(ours, torch_forward(theirs, IDS), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["llama", "llama-biases", "gemma3", "qwen3_5"])
def test_each_change_of_the_converter_matters(made, case, monkeypatch):
    """Each kind of tensor as it is in the file: rotated pairs, norms plus one, heads apart."""
    theirs, path = made(case)
    expected, _ = torch_forward(theirs, IDS)
    found = gguf_changes(
        checkpoints.find_checkpoint(path).table(()), read_header(path).architecture
    )
    kinds = {name.rpartition("blk.")[2].lstrip("0123456789") for name in found}
    assert len(kinds) == {"llama": 2, "llama-biases": 4, "gemma3": 7, "qwen3_5": 13}[case]
    for kind in kinds:
        kept = {
            name: Change(shape=change.shape) if name.endswith(kind) else change
            for name, change in found.items()
        }
        monkeypatch.setattr(checkpoints, "gguf_changes", lambda *_, kept=kept: kept)
        ours, _ = forward(*load_pretrained(path), IDS)
        assert not np.abs(ours - expected).max() < 1e-2, kind


def test_layers_for_the_prediction_of_several_tokens_are_ignored(made, tmp_path):
    _, path = made("qwen3_5")

    def edit(tensors):
        tensors["blk.4.nextn.eh_proj.weight"] = np.ones((2, 3), np.float32)
        tensors["blk.4.attn_norm.weight"] = np.ones(3, np.float32)

    more = {"qwen35__block_count": 5, "qwen35__nextn_predict_layers": 1}
    other = write_gguf(tmp_path / "other.gguf", path.parent, edit=edit, **more)
    assert_same_params(load_pretrained(other)[1], load_pretrained(path)[1])


@pytest.mark.parametrize("case", ["llama-llama3", "qwen2-yarn", "gemma3-linear"])
def test_scaling_of_the_rotation_matters(made, case, tmp_path):
    """Without the file's divisors or factor."""
    theirs, path = made(case)
    architecture = read_header(path).architecture
    other = write_gguf(
        tmp_path / "other.gguf",
        path.parent,
        edit=lambda tensors: tensors.pop("rope_freqs.weight", None),
        **{f"{architecture}__rope__scaling__type": "none"},
    )
    ours, _ = forward(*load_pretrained(other), IDS)
    assert np.abs(ours - torch_forward(theirs, IDS)[0]).max() > 1e-2


def read_header(path):
    return gguf_header.read_header(Path(path))


# --- Quantisations --------------------------------------------------------------------------------


WIDE = {
    "vocab_size": 61,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Directory of a model whose rows are whole blocks of every quantisation."""
    directory = tmp_path_factory.mktemp("wide")
    build_torch_model("llama", **WIDE).save_pretrained(directory)
    return directory


def quantised_file(path, directory, kind):
    """A file with random blocks of a kind for all matrices; and the values of all tensors."""
    values, rng = {}, np.random.default_rng(0)

    def edit(tensors):
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                blocks = random_blocks(kind, *tensor.shape, rng)
                number = gguf.GGMLQuantizationType[kind]
                values[name] = gguf.dequantize(blocks, number).reshape(tensor.shape)
                tensors[name] = (kind, blocks.view(np.uint8))
            else:
                values[name] = tensor

    return write_gguf(path, directory, edit=edit), values


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_package(wide, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(gguf_tensors, "VALUES_AT_ONCE", 5 * 256)  # several parts, the last smaller
    path, values = quantised_file(tmp_path / "model.gguf", wide, kind)
    model, params = load_pretrained(path)
    names = {w.path: w.names for w in checkpoints.find_checkpoint(path).table(())}
    for weight in weight_table(model.config):
        param = params
        for key in weight.path:
            param = param[key]
        for layer, name in enumerate(names[weight.path]):
            ours = weight.to_stored(np.asarray(param[layer] if weight.is_stacked else param))
            if weight.path[-1] in ("q_kernel", "k_kernel"):
                ours = permuted(ours, len(ours) // 64)
            np.testing.assert_array_equal(ours, values[name], err_msg=name)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K"])
def test_shards_are_those_of_the_whole(wide, tmp_path, kind):
    path, _ = quantised_file(tmp_path / "model.gguf", wide, kind)
    mesh = make_mesh(1, 2, 4)  # heads, columns and rows are divided
    _, whole = load_pretrained(path)
    _, sharded = load_pretrained(path, mesh=mesh)
    assert_same_params(jax.device_get(sharded), jax.device_get(whole))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(sharded))


def test_a_tensor_of_all_layers_is_in_memory_at_a_time(tmp_path):
    """Beyond what is loaded: far less than all weights in float32, though more than the largest."""
    sizes = WIDE | {"num_hidden_layers": 8, "intermediate_size": 1024, "vocab_size": 2048}
    build_torch_model("llama", **sizes).save_pretrained(tmp_path)
    path, _ = quantised_file(tmp_path / "model.gguf", tmp_path, "Q8_0")
    load_pretrained(path, "bfloat16")  # what compiles and is imported is not counted
    tracemalloc.start()
    _, params = load_pretrained(path, "bfloat16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    of_weights = [4 * weight.size for weight in jax.tree.leaves(params)]
    assert max(of_weights) < peak < 0.7 * sum(of_weights)


def test_bfloat16_is_exact(wide, tmp_path):
    path, values = quantised_file(tmp_path / "model.gguf", wide, "BF16")
    _, params = load_pretrained(path, "bfloat16")
    found = np.asarray(params["embedding"], np.float32)
    np.testing.assert_array_equal(found, values["token_embd.weight"])


def test_int8_is_that_of_the_directory(made):
    _, path = made("qwen3")
    _, ours = load_pretrained(path, weights="int8")
    _, expected = load_pretrained(path.parent, weights="int8")
    assert_same_params(ours, expected)


@pytest.mark.parametrize("case", ["llama", "gemma3"])
@pytest.mark.parametrize("weights", [None, "int8"])
def test_an_abstract_agent_reads_the_header_alone(made, case, weights, monkeypatch):
    _, path = made(case)
    model, params = load_pretrained(path, "bfloat16", weights=weights)
    monkeypatch.setattr(gguf_tensors.TensorFile, "get_slice", None)
    abstract_model, abstract = abstract_agent(path, dtype="bfloat16", weights=weights)
    assert abstract_model.config == model.config
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )


# --- Commands and teams ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    """The embedded planner as a file."""
    path = tmp_path_factory.mktemp("planner") / "planner.gguf"
    return write_gguf(path, PLANNER, tokenizer=byte_level_fields(PLANNER, "llama-bpe"))


def test_the_command_answers_as_for_the_directory(planner, capsys):
    answers = []
    for path in (PLANNER, planner):
        assert main([str(path), "--prompt", "Kenal Bison", "--max-tokens", "8"]) == 0
        answers.append(capsys.readouterr().out)
    assert [a.splitlines()[-1] for a in answers] == [answers[0].splitlines()[-1]] * 2
    assert [a.splitlines()[0] for a in answers] == [answers[0].splitlines()[0]] * 2


def test_a_team_may_have_an_agent_of_a_file(planner):
    config = load_config("quickstart", [f"system.agents.planner={planner}"]).system
    assert config.agents["planner"] == str(planner)
    team, expected = load_team(config), load_team(load_config("quickstart").system)
    ours, theirs = (t.members["planner"] for t in (team, expected))
    assert_same_params(ours.agent.params, theirs.agent.params)
    assert ours.agent.config == theirs.agent.config
    assert ours.end_tokens == theirs.end_tokens
    abstract = load_team(config, is_abstract=True).members["planner"].agent
    assert jax.tree.map(np.shape, abstract.params) == jax.tree.map(np.shape, ours.agent.params)


# --- Sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["owner/tiny/model.gguf@abc", "owner/tiny/folder/model.gguf"])
def test_a_file_of_the_hub_is_fetched_alone(made, tmp_path, monkeypatch, source):
    _, path = made("llama")
    name = source.removeprefix("owner/tiny/").partition("@")[0]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(path, tmp_path / name)
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_same_params(load_pretrained(source)[1], load_pretrained(path)[1])
    assert asked == [("owner/tiny", "abc" if "@" in source else None, [name])]
    with pytest.raises(CheckpointError, match=r"other\.gguf: no such file in owner/tiny"):
        load_pretrained("owner/tiny/other.gguf")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.gguf: no such file$"):
        load_pretrained(tmp_path / "nowhere.gguf")
    with pytest.raises(CheckpointError, match="no such file, and not available from the hub"):
        load_pretrained("owner/tiny/nowhere.gguf")
    (tmp_path / "link.gguf").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="must be a regular file, got a device"):
        load_pretrained(tmp_path / "link.gguf")


# --- Refusals -------------------------------------------------------------------------------------


@pytest.fixture
def changed(made, tmp_path):
    """Function that writes the file of a case with changes, and loads it."""

    def load(case="llama", **changes):
        _, path = made(case)
        return load_pretrained(write_gguf(tmp_path / "changed.gguf", path.parent, **changes))

    return load


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (
            "llama",
            {"general__architecture": "mamba"},
            "general.architecture must be one of llama, qwen2, qwen3, gemma3, qwen35, got 'mamba'",
        ),
        ("llama", {"llama__expert_count": 8}, "llama.expert_count must be absent .* got 8"),
        ("llama", {"llama__block_count": ...}, "llama.block_count must be an integer .* nothing"),
        ("qwen3", {"qwen3__block_count": "2"}, "qwen3.block_count must be an integer .* got '2'"),
        ("llama", {"llama__rope__dimension_count": 6}, "partial_rotary_factor must be one of 1"),
        ("qwen3", {"qwen3__attention__value_length": 8}, "must be the size of a head, 12, got 8"),
        ("qwen2", {"qwen2__rope__scaling__type": "su"}, "scaling.type must be one of .* got 'su'"),
        ("gemma3", {"gemma3__final_logit_softcapping": 30.0}, "softcapping must be absent"),
    ],
)
def test_other_decoders_are_refused_by_name(changed, case, changes, message):
    with pytest.raises(UnsupportedModelError, match=rf"changed\.gguf.*{message}"):
        changed(case, **changes)


def test_one_error_lists_all_weights_that_do_not_fit(changed):
    def edit(tensors):
        del tensors["blk.1.attn_q.weight"]
        tensors["blk.0.ffn_norm.weight"] = np.ones(3, np.float32)
        tensors["blk.0.attn_sinks.weight"] = np.ones(4, np.float32)

    with pytest.raises(CheckpointError) as error:
        changed(edit=edit)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("changed.gguf: the weights must be those of llama, got")
    assert lines[1:] == [
        "  missing: blk.1.attn_q.weight",
        "  misshapen: blk.0.ffn_norm.weight must be (32,), got (3,)",
        "  unexpected: blk.0.attn_sinks.weight",
    ]


def test_a_file_without_embeddings_is_refused(changed):
    with pytest.raises(CheckpointError, match=r"must have the tensor token_embd\.weight, got none"):
        changed(edit=lambda tensors: tensors.pop("token_embd.weight"))


def test_parts_of_a_divided_file_are_refused(changed):
    with pytest.raises(CheckpointError, match=r"split\.count must be 1 .* llama-gguf-split"):
        changed(split__count=3)


@pytest.mark.parametrize("number", [4, 24, 99])  # one that was removed, integers, none at all
def test_other_quantisations_are_refused_by_name(made, tmp_path, number):
    _, path = made("llama")
    content = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    assert content[place : place + 4] == bytes(4)  # float32
    other = tmp_path / "other.gguf"
    other.write_bytes(content[:place] + bytes([number, 0, 0, 0]) + content[place + 4 :])
    kind = {24: "I8"}.get(number, f"type {number}")
    message = rf"other\.gguf: {name.decode()}: quantisation must be one of F32, .*, got {kind}"
    with pytest.raises(UnsupportedModelError, match=message):
        load_pretrained(other)


def test_other_formats_and_versions_are_refused(made, tmp_path):
    _, path = made("llama")
    content, other = path.read_bytes(), tmp_path / "other.gguf"
    for start, message in (
        (b"GGML", r"must start with b'GGUF', got b'GGML'"),
        (b"GGUF\x01\0\0\0", "version of GGUF must be 2 or 3, got 1"),
        (b"GGUF\0\0\0\x03", "got big-endian numbers"),
    ):
        other.write_bytes(start + content[len(start) :])
        with pytest.raises(CheckpointError, match=message):
            read_config(other)


def test_truncated_files_are_refused(made, tmp_path):
    _, path = made("llama")
    content, other = path.read_bytes(), tmp_path / "other.gguf"
    header = content.index(b"output_norm.weight")
    for size in (*range(0, header, 97), header, len(content) // 2, len(content) - 1):
        other.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"not a whole GGUF file|must start with"):
            load_pretrained(other)


def test_damaged_headers_end_in_an_error_or_are_read(made, tmp_path):
    """Counts and lengths of any size neither block nor fill the memory."""
    _, path = made("gemma3")
    content, other = bytearray(path.read_bytes()), tmp_path / "other.gguf"
    end, rng = content.index(b"output_norm.weight") + 200, np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(4, end, 2):
            damaged[place] = rng.integers(256)
        other.write_bytes(damaged)
        try:
            read_config(other)
        except (CheckpointError, UnsupportedModelError):
            refused += 1
    assert refused > 100


def test_the_extra_is_named_where_the_package_is_missing(made, monkeypatch):
    _, path = made("llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r'pip install "rmas_jax\[gguf\]"'):
        load_pretrained(path)


def test_a_config_of_one_file_is_written_for_transformers(made, tmp_path):
    """What a file says can be saved as a directory, and loads there as the same decoder."""
    from rmas_jax.models import save_pretrained

    for case in ("llama-llama3", "gemma3-linear"):
        model, params = load_pretrained(made(case)[1])
        save_pretrained(tmp_path / case, model, params)
        again, same = load_pretrained(tmp_path / case)
        assert again.config.rope_scaling.kind == model.config.rope_scaling.kind
        assert_same_params(same, params)
