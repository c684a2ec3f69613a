"""Released links: files that torch wrote, files that are damaged, and files that mean harm."""

from __future__ import annotations

import os
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from released import (
    Adapter,
    CrossModelAdapter,
    assert_same_link,
    perturbed,
    write_json,
    write_role,
)
from torch import nn

from rmas_jax.cli.convert import main
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.interop import (
    read_inner_link,
    read_outer_links,
    read_state,
    write_inner_link,
    write_outer_links,
    write_state,
)
from rmas_jax.links import INNER, OUTER, VARIANTS, LinkConfig, init_link
from rmas_jax.models import CheckpointError

# --- State dicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_torch_saved_is_read_exactly(tmp_path, dtype):
    state = perturbed(CrossModelAdapter(4, 6)).to(dtype).state_dict()
    torch.save(state, tmp_path / "link.pt")
    ours = read_state(tmp_path / "link.pt")
    assert set(ours) == set(state)
    for name, tensor in state.items():
        assert ours[name].dtype.name == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(ours[name].astype(np.float64), tensor.double().numpy())


def test_views_and_parameters_are_read_as_what_they_show(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "turned": whole.T,
        "part": whole[1:3, ::2],
        "own": nn.Parameter(whole),
        "one": whole[2, 3],
    }
    torch.save(state, tmp_path / "views.pt")
    for name, array in read_state(tmp_path / "views.pt").items():
        np.testing.assert_array_equal(array, state[name].detach().numpy())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_we_write_is_read_by_torch_and_by_us(tmp_path, suffix):
    rng = np.random.default_rng(0)
    state = {
        "w": rng.normal(size=(3, 5)).astype(np.float32).T,  # not contiguous
        "b": rng.normal(size=4).astype(ml_dtypes.bfloat16),
        "s": np.float64(2.5).reshape(()),
    }
    path = tmp_path / f"link{suffix}"
    write_state(path, state)
    ours = read_state(path)
    for name, array in state.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)
    if suffix == ".pt":
        theirs = torch.load(path, weights_only=True)
        assert theirs["b"].dtype is torch.bfloat16
        for name, array in state.items():
            np.testing.assert_array_equal(theirs[name].double().numpy(), array.astype(np.float64))


class Harm:
    """A pickle that would leave a mark if it were run."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    torch.save({"w": torch.zeros(2), "x": Harm(mark)}, tmp_path / "link.pt")
    with pytest.raises(CheckpointError, match=r"link\.pt: its pickle must .*, got posix\.mkdir"):
        read_state(tmp_path / "link.pt")
    assert not mark.exists()
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Harm(mark)))
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_state(tmp_path / "bare.pt")
    assert not mark.exists()


@pytest.fixture
def link_file(tmp_path):
    torch.save(Adapter(4).state_dict(), tmp_path / "link.pt")
    return tmp_path / "link.pt"


def test_damaged_files_are_refused(link_file):
    raw = link_file.read_bytes()
    for content in (raw[: len(raw) // 2], b"", b"no zip at all"):
        link_file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
            read_state(link_file)
    with zipfile.ZipFile(link_file, "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(CheckpointError, match=r"got a zip archive with 0 data\.pkl"):
        read_state(link_file)
    with pytest.raises(CheckpointError, match="no such file"):
        read_state(link_file.with_name("none.pt"))


def test_a_flipped_byte_is_noticed(link_file):
    raw = bytearray(link_file.read_bytes())
    raw[raw.index(read_state(link_file)["proj2.weight"].tobytes())] ^= 1
    link_file.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match=r"is damaged \(checksum\)"):
        read_state(link_file)


def test_what_is_no_state_dict_is_refused(tmp_path, link_file):
    torch.save([torch.zeros(2)], link_file)
    with pytest.raises(CheckpointError, match="must hold tensors by name alone, got a list"):
        read_state(link_file)
    torch.save({"w": torch.zeros(2, dtype=torch.int64)}, link_file)
    with pytest.raises(CheckpointError, match=r"got torch\.LongStorage, which is not run"):
        read_state(link_file)
    with pytest.raises(CheckpointError, match="int32"):
        write_state(tmp_path / "ids.pt", {"ids": np.zeros(2, np.int32)})


# --- Layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_described", [True, False])
def test_inner_links_of_a_role_by_task(tmp_path, is_described):
    """Bracketed names, with and without a configuration that leads to them."""
    modules = {task: perturbed(Adapter(6), seed) for seed, task in enumerate(("math", "code"))}
    write_role(tmp_path, modules)
    if not is_described:
        (tmp_path / "innerlink_config.json").unlink()
    for task, module in modules.items():
        assert_same_link(read_inner_link(tmp_path, task=task), module)
    with pytest.raises(CheckpointError, match=r"must hold an inner link for task None, one of"):
        read_inner_link(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("innerlink_config.json", {"tasks": []}, "tasks must be files by task"),
        ("innerlink_config.json", {"tasks": {"math": "a.pt"}}, "tasks must be files by task"),
        ("innerlink_config.json", {"tasks": {"math": {"adapter.pt": "../a.pt"}}}, "got '../a.pt'"),
        ("innerlink_config.json", {"tasks": {"math": {"adapter.pt": 3}}}, "without folders, got 3"),
        ("adapter_config.json", {"adapter_type": "lora"}, "adapter_type must be one of"),
        ("adapter_config.json", {"adapter_type": "res_adapter"}, "pre_ln.weight is unexpected"),
        (
            "adapter_config.json",
            {"adapter_type": ["ln_res_adapter"]},
            "adapter_type must be one of",
        ),
    ],
)
def test_roles_that_are_not_described_right(tmp_path, file, content, words):
    write_role(tmp_path, {"math": Adapter(4)})
    write_json(tmp_path / file, content)
    with pytest.raises(CheckpointError) as error:
        read_inner_link(tmp_path, task="math")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"legacy_key": "outer_99"}, "legacy_key must be one of"),
        ({"adapter_type": "lora"}, "adapter_type must be one of"),
        ({"filename": "../link.pt"}, "without folders, got '../link.pt'"),
        ({"filename": "none.pt"}, "no such file"),
        ({"in_dim": 5}, "must have shape (12, 5), got (12, 4)"),
        ({"out_dim": 7}, "residual_proj.weight must have shape (7, 4), got (6, 4)"),
        ({"adapter_type": "outer_ln_adapter"}, "residual_proj.weight is unexpected"),
        ({"in_dim": None}, "in_dim of an adapter must be int, got None"),
        ({"in_dim": "4"}, "in_dim of an adapter must be int, got '4'"),
        ({"legacy_key": ["outer_12"]}, "legacy_key of an adapter must be str"),
    ],
)
def test_outer_links_that_do_not_fit(tmp_path, changes, words):
    torch.save(CrossModelAdapter(4, 6).state_dict(), tmp_path / "outer_12.pt")
    entry = {"legacy_key": "outer_12", "filename": "outer_12.pt", "in_dim": 4, "out_dim": 6}
    entry |= {"adapter_type": "outer_ln_res_adapter"} | changes
    entry = {key: value for key, value in entry.items() if value is not None}
    write_json(tmp_path / "outerlink_config.json", {"adapters": [entry]})
    with pytest.raises(CheckpointError) as error:
        read_outer_links(tmp_path)
    assert words in str(error.value)


def test_every_outer_link_that_cannot_be_used_is_listed(tmp_path):
    entry = {"adapter_type": "outer_ln_res_adapter", "in_dim": 4, "out_dim": 6}
    entries = [entry | {"legacy_key": k, "filename": f"{k}.pt"} for k in ("outer_12", "outer_23")]
    write_json(tmp_path / "outerlink_config.json", {"adapters": entries})
    with pytest.raises(CheckpointError, match=r"(?s)outer_12.pt: no such file.*outer_23.pt: no s"):
        read_outer_links(tmp_path)
    write_json(tmp_path / "outerlink_config.json", {"adapters": [entries[0], entries[0]]})
    with pytest.raises(CheckpointError, match="legacy_key must be distinct, got 'outer_12' twice"):
        read_outer_links(tmp_path)


@pytest.mark.parametrize(
    "content",
    [None, "[]", "{", "{}", '{"adapters": []}', '{"adapters": [1]}', '{"tasks": []}'],
)
def test_outer_configurations_that_are_none(tmp_path, content):
    if content is not None:
        (tmp_path / "outerlink_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"outerlink_config\.json"):
        read_outer_links(tmp_path)


def test_every_link_variant_survives_writing_and_reading(tmp_path):
    for variant in VARIANTS[INNER]:
        config = LinkConfig(INNER, variant, 4, 4)
        params = init_link(config, jax.random.key(0))
        for task in (None, "math"):
            directory = tmp_path / f"{variant}-{task}"
            write_inner_link(directory, (config, params), task=task)
            again, its_params = read_inner_link(directory, task=task)
            assert again == config
            jax.tree.map(np.testing.assert_array_equal, its_params, params)
    for variant in VARIANTS[OUTER]:
        config = LinkConfig(OUTER, variant, 4, 6)
        links = {"math->summarizer": (config, init_link(config, jax.random.key(0)))}
        write_outer_links(tmp_path / variant, links)
        again, its_params = read_outer_links(tmp_path / variant)["math->summarizer"]
        assert again == config
        jax.tree.map(np.testing.assert_array_equal, its_params, links["math->summarizer"][1])
    with pytest.raises(CheckpointError, match=r"among upstream's, .*, got \['a->b'\]"):
        write_outer_links(tmp_path, {"a->b": links["math->summarizer"]})


def test_the_command_converts_both_ways(tmp_path, link_file, capsys):
    there, back = tmp_path / "link.safetensors", tmp_path / "again.pt"
    assert main([str(link_file), str(there)]) == 0
    assert "proj1.weight             float32   [4, 4]" in capsys.readouterr().out
    assert main([str(there), str(back)]) == 0
    for name, array in read_state(link_file).items():
        np.testing.assert_array_equal(read_state(back)[name], array)
    assert main([str(tmp_path / "none.pt"), str(back)]) == BAD_INPUT
    assert "no such file" in capsys.readouterr().err
