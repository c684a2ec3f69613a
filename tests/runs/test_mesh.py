"""The mesh of a run: an open size, and another mesh for the same run."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from rmas_jax.config import ConfigError, load_config
from rmas_jax.partition import DEFAULT_POLICIES, POLICIES
from rmas_jax.runs.folder import open_folder
from rmas_jax.runs.resources import load_run_team, mesh_of, with_mesh

CONFIG = "quickstart"


def sizes(*overrides):
    config = with_mesh(load_config(CONFIG, ["outer.phases.0.batch_size=8", *overrides]))
    return tuple(dataclasses.asdict(config.runtime.mesh).values()), config


def test_an_open_size_is_what_the_others_leave():
    assert jax.device_count() == 8
    assert sizes()[0] == (1, 1, 1)
    assert sizes("runtime.mesh.fsdp=null")[0] == (1, 8, 1)
    found, config = sizes("runtime.mesh={data: null, fsdp: 2, model: 2}")
    assert found == (2, 2, 2) and mesh_of(config).size == 8
    assert sizes("runtime.mesh={data: 4, model: null}")[0] == (4, 1, 2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["runtime.mesh={data: 3, fsdp: null}", "outer.phases=[]"], "divide the 8 devices, got 3"),
        (["runtime.mesh={data: null, fsdp: null}"], "runtime.mesh.fsdp must be a size, as data"),
        (["runtime.mesh.data=0"], "an integer of at least 1 and at most 65536 or null"),
        (
            ["runtime.mesh.fsdp=null", "outer.phases.0.batch_size=4"],
            r"outer.phases.0.batch_size must be a multiple of 8 \(runtime.mesh: data x fsdp = 8",
        ),
    ],
)
def test_sizes_that_do_not_fit(overrides, words):
    with pytest.raises(ConfigError, match=words):
        sizes(*overrides)


def test_a_run_goes_on_on_another_mesh_and_under_no_other_dtype(tmp_path):
    batch = "outer.phases.0.batch_size=8"
    for mesh in ("runtime.mesh.data=1", "runtime.mesh.data=4"):
        config = load_config(CONFIG, [f"output_dir={tmp_path}", batch, mesh])
        with open_folder(config, {"data": "1.0"}) as folder:
            assert f"data: {mesh[-1]}" in folder.files.config.read_text()
    other = load_config(CONFIG, [f"output_dir={tmp_path}", batch, "runtime.dtype=bfloat16"])
    with pytest.raises(ConfigError, match=r"differs in runtime\.dtype"), open_folder(other, {}):
        pass


def test_policies_reach_every_agent():
    assert DEFAULT_POLICIES.thinking == DEFAULT_POLICIES.writing == "stay"
    _, config = sizes("runtime.mesh.fsdp=null", "runtime.policies.thinking=gather")
    for agent in load_run_team(config, is_abstract=True).agents.values():
        assert agent.partition.during("thinking").policy == POLICIES["gather"]
        assert agent.partition.during("writing").policy == POLICIES["stay"]
