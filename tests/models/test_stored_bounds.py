"""Files of a checkpoint that are no files, too large, or claim what they do not hold."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import WEIGHTS, edit_config, edit_weights, shard

from rmas_jax.host.errors import MESSAGE_LIMIT
from rmas_jax.host.reading import MEBIBYTE
from rmas_jax.models import CheckpointError, UnsupportedModelError, load_pretrained, load_tokenizer
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.models.stored import MAX_HEADER, read_safetensors, weight_files

INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(oracle, tmp_path):
    """A checkpoint with every file that is read of one; the tokenizer is the planner's."""
    copy = shutil.copytree(oracle("llama").directory, tmp_path / "copy")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"rmas_jax/assets/embedded/planner/{file}", copy)
    (copy / "generation_config.json").write_text("{}")
    return copy


def load_all(directory):
    sampling_defaults(directory)
    load_tokenizer(directory)
    load_pretrained(directory)


def pipe(path):
    os.mkfifo(path)


def endless_device(path):
    path.symlink_to("/dev/zero")


def terminal(path):
    path.symlink_to("/dev/tty")


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def dangling_link(path):
    path.symlink_to("nowhere")


def link_loop(path):
    path.symlink_to(path.name)


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS],
)
@pytest.mark.parametrize(
    "replace",
    [pipe, endless_device, terminal, unix_socket, dangling_link, link_loop, folder],
    ids=lambda replace: replace.__name__,
)
def test_what_is_no_regular_file_is_refused(directory, file, replace):
    (directory / file).unlink()
    replace(directory / file)
    with pytest.raises(CheckpointError) as error:
        load_all(directory)
    assert file in str(error.value) or "tokenizer" in str(error.value)
    assert len(str(error.value)) < MESSAGE_LIMIT


@pytest.mark.parametrize("replace", [pipe, endless_device, dangling_link, link_loop, folder])
@pytest.mark.parametrize("which", ["index", "shard"])
def test_nor_an_index_or_a_shard(directory, which, replace):
    file = directory / (INDEX if which == "index" else shard(directory)[1])
    if which == "index":
        shard(directory)
    file.unlink()
    replace(file)
    with pytest.raises(CheckpointError, match=file.name):
        load_pretrained(directory)


def test_a_pipe_beside_the_files_is_no_trap_for_those_who_list_them(directory):
    pipe(directory / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: .* got a pipe"):
        load_pretrained(directory)


# --- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "size", "at_most"),
    [
        ("config.json", 2 * MEBIBYTE, "1 MiB"),
        ("config.json", 2**40, "128 MiB"),
        ("tokenizer.json", 2**40, "128 MiB"),
        (INDEX, 33 * MEBIBYTE, "32 MiB"),
    ],
)
def test_sizes_beyond_any_published_are_refused(directory, file, size, at_most):
    if file == INDEX:
        (directory / WEIGHTS).unlink()
    (directory / file).touch()
    os.truncate(directory / file, size)  # sparse: nothing is written
    with pytest.raises(CheckpointError, match=rf"{file}: must be at most {at_most}"):
        load_all(directory)


def header_of(names):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    raw = json.dumps(dict.fromkeys(names, entry)).encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize("claimed", [2**63, 2**40, 10**8, MAX_HEADER + 1])
def test_a_header_that_claims_more_than_any_has_is_refused(directory, claimed):
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", claimed) + b"{")
    with pytest.raises(CheckpointError, match=r"its header must be at most 16 MiB, got"):
        load_pretrained(directory)
    with pytest.raises(CheckpointError, match=r"its header must be at most 16 MiB, got"):
        read_safetensors(directory / WEIGHTS)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        [[[[]]]],
    ],
)
def test_tensors_that_cannot_be_are_refused(directory, entry):
    raw = json.dumps({"model.norm.weight": entry}).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0\0\0\0")
    for read in (load_pretrained, lambda path: read_safetensors(path / WEIGHTS)):
        with pytest.raises(CheckpointError, match=str(directory)):
            read(directory)


def test_a_hundred_thousand_names_are_counted_not_listed(directory):
    names = [f"layers.{i}.what" for i in range(100_000)]
    (directory / WEIGHTS).write_bytes(header_of(names))
    with pytest.raises(CheckpointError, match=r"and 100,0\d\d more$") as error:
        load_pretrained(directory)
    assert len(str(error.value)) < MESSAGE_LIMIT


def test_long_names_are_cut(directory):
    long = "x" * 100_000
    edit_weights(directory, lambda tensors: tensors.update({long: np.ones(1, np.float32)}))
    with pytest.raises(CheckpointError, match="unexpected: xxx") as error:
        load_pretrained(directory)
    assert len(str(error.value)) < MESSAGE_LIMIT


@pytest.mark.parametrize("layers", [10**3, 10**5])
def test_more_layers_than_tensors_are_refused(directory, layers):
    edit_config(directory, num_hidden_layers=layers, layer_types=...)
    with pytest.raises(
        (CheckpointError, UnsupportedModelError),
        match=f"num_hidden_layers must be .*, got {layers}",
    ):
        load_pretrained(directory)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        [],
        {},
        {"a": 3},
        {"a": "/etc/passwd"},
        {"a": "../b"},
        {"a": "x/../../b"},
        {"a": ""},
        {"a": "."},
        {"a": None},
        {"a" * 10**5: ["b" * 10**6]},
        {"a": "b\0c"},
    ],
)
def test_an_index_leads_nowhere_else(directory, weight_map):
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"safetensors\.index\.json|b\\?x?0*c") as error:
        load_pretrained(directory)
    assert len(str(error.value)) < MESSAGE_LIMIT


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a": ' * 10**5, '{"weight_map": ' + "9" * 5000 + "}", "nul", '"x"']
)
def test_json_that_is_none(directory, text):
    (directory / WEIGHTS).unlink()
    for file in (INDEX, "config.json", "generation_config.json"):
        before = (directory / file).read_text() if (directory / file).exists() else None
        (directory / file).write_text(text)
        with pytest.raises(CheckpointError, match=file):
            load_all(directory)
        if before is not None:
            (directory / file).write_text(before)


@pytest.mark.parametrize("field", ["eos_token_id", "top_k", "temperature", "num_beams"])
@pytest.mark.parametrize("value", [10**400, [["x" * 10**5]], {"a": 10**4000}], ids=["n", "l", "m"])
def test_values_of_a_generation_config_have_bounds(directory, field, value):
    raw = {"do_sample": True, field: value}
    (directory / "generation_config.json").write_text(json.dumps(raw))
    if field == "eos_token_id" and value == 10**400:  # an id that no text has
        assert sampling_defaults(directory)[1] == (value,)
        return
    with pytest.raises(CheckpointError, match=field) as error:
        sampling_defaults(directory)
    assert len(str(error.value)) < MESSAGE_LIMIT


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "x" * 300, "", "/dev/null", "\ud800"])
def test_paths_that_are_none(path):
    with pytest.raises(CheckpointError) as error:
        load_pretrained(path)
    assert len(str(error.value)) < MESSAGE_LIMIT


def test_empty_and_whole_files_are_told_apart(directory):
    assert weight_files(directory) == [directory / WEIGHTS]
    os.truncate(directory / WEIGHTS, 0)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_pretrained(directory)
    safetensors.numpy.save_file({"a": np.ones(2, np.float16)}, directory / WEIGHTS)
    assert read_safetensors(directory / WEIGHTS)["a"].dtype == np.float16
    assert MEBIBYTE < MAX_HEADER
