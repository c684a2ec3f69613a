"""Whole systems of links converted on the command line: a release to a file of ours, and back."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from released import Adapter, CrossModelAdapter, assert_same_link, write_json, write_release

from rmas_jax.cli.convert import main
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.interop import read_links, read_released_links, read_state, write_state
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import INNER, Links

WIDTH = {"expert": 4, "learner": 6}


@pytest.fixture
def release(tmp_path):
    write_release(tmp_path / "release", "distillation", WIDTH)
    return tmp_path / "release"


def read(release, task=None):
    return read_released_links(release / "outer", {r: release / r for r in WIDTH}, task=task)


def params_of(links):
    return Links(
        **{kind: {name: link[1] for name, link in of.items()} for kind, of in links.items()}
    )


def test_a_release_becomes_a_file_of_ours_and_back(release, tmp_path, capsys):
    ours, again = tmp_path / "ours.safetensors", tmp_path / "again"
    roles = [part for role in WIDTH for part in ("--role", f"{role}={release / role}")]
    assert main([str(release / "outer"), str(ours), *roles, "--task-type", "math"]) == 0
    assert "outer expert->learner          ln_res 4 -> 6" in capsys.readouterr().out
    links = params_of(read_links(ours))
    jax.tree.map(np.testing.assert_array_equal, links, params_of(read(release, "math")))
    # Of numbers that bfloat16 cannot hold: what we write is float32, to the last bit.
    links = jax.tree.map(lambda x: x + jnp.linspace(0, 1e-3, x.size).reshape(x.shape), links)
    save_links(ours, links)

    assert main([str(ours), str(again)]) == 0
    back = read(again)
    jax.tree.map(np.testing.assert_array_equal, params_of(back), links)
    # Upstream loads strictly: all names of its modules, and no other.
    inner, outer = Adapter(4), CrossModelAdapter(4, 6)
    inner.load_state_dict(torch.load(again / "expert" / "adapter.pt", weights_only=True))
    outer.load_state_dict(torch.load(again / "outer" / "outer_el.pt", weights_only=True))
    assert_same_link(back["inner"]["expert"], inner)
    assert_same_link(back["outer"]["expert->learner"], outer)
    described = json.loads((again / "expert" / "adapter_config.json").read_text())
    assert described == {"adapter_type": "ln_res_adapter"}


def test_conversions_that_cannot_be(release, tmp_path, capsys):
    outer, ours = str(release / "outer"), str(tmp_path / "ours.safetensors")
    expert, learner = (f"--role={role}={release / role}" for role in WIDTH)

    def refused(*arguments):
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == BAD_INPUT
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    assert "SRC must be a file, or a release with --role" in refused(outer, ours)
    assert "--task-type must be unset unless --role is given, got math" in refused(
        ours, "x.pt", "--task-type=math"
    )
    assert "--inner-link must be unset unless DST is a directory, got mlp" in refused(
        outer, ours, "--inner-link=mlp"
    )
    assert "DST must end in .safetensors with --role" in refused(outer, "x.pt", expert)
    assert "must be ROLE=SOURCE, each role once" in refused(outer, ours, expert, expert)
    assert "task must be one of ['math', 'code'], got" in refused(outer, ours, expert, learner)
    assert "outer links must be none, got learner->expert too" in refused(
        outer, ours, expert, "--task-type=math"
    )
    links = params_of(read(release, "math"))
    del links.outer["learner->expert"]
    save_links(ours, links)
    assert "outer link learner->expert is missing" in refused(ours, str(tmp_path / "back"))
    links.outer["learner->judge"] = links.outer["expert->learner"]
    save_links(ours, links)
    assert "got ['learner->judge']" in refused(ours, str(tmp_path / "back"))


def test_ambiguous_inner_links_need_their_variant(release, tmp_path, capsys):
    ours, again = str(tmp_path / "ours.safetensors"), tmp_path / "again"
    for role in WIDTH:
        state = read_state(release / role / "adapter(math).pt")
        state = {name: array for name, array in state.items() if "ln" not in name}
        for suffix in ("math", "code"):
            write_state(release / role / f"adapter({suffix}).pt", state)
        write_json(release / role / "adapter_config.json", {"adapter_type": "res_adapter"})
    roles = [f"--role={role}={release / role}" for role in WIDTH]
    assert main([str(release / "outer"), ours, *roles, "--task-type=math"]) == 0
    assert main([ours, str(again)]) == BAD_INPUT
    assert "the tensors of inner/expert fit mlp and mlp_res" in capsys.readouterr().err
    assert main([ours, str(again), "--inner-link=mlp_res"]) == 0
    described = json.loads((again / "expert" / "adapter_config.json").read_text())
    assert described == {"adapter_type": "res_adapter"}
    variants = {
        name: config.variant
        for name, (config, _) in read_links(ours, inner_variant="mlp")[INNER].items()
    }
    assert variants == {"expert": "mlp", "learner": "mlp"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_link_is_written_to_a_folder_that_is_made(release, tmp_path, capsys, suffix):
    source = release / "expert" / "adapter(math).pt"
    path = tmp_path / "new" / "deep" / f"y{suffix}"
    assert main([str(source), str(path)]) == 0
    wanted = read_state(source)
    jax.tree.map(np.testing.assert_array_equal, read_state(path), wanted)
    # The message of an unwritable output has its path.
    for blocked in (path / f"y{suffix}", tmp_path / f"folder{suffix}"):
        (tmp_path / f"folder{suffix}").mkdir(exist_ok=True)
        assert main([str(source), str(blocked)]) == BAD_INPUT
        assert str(blocked.parent) in capsys.readouterr().err


def test_links_that_cannot_be_written_are_refused(release, tmp_path, capsys):
    roles = [f"--role={role}={release / role}" for role in WIDTH]
    (tmp_path / "ours.safetensors.partial").mkdir()  # what is renamed when it is whole
    out = str(tmp_path / "ours.safetensors")
    assert main([str(release / "outer"), out, *roles, "--task-type=math"]) == BAD_INPUT
    assert "ours.safetensors.partial" in capsys.readouterr().err
