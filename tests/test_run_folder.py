"""What a run belongs to: the agents' weights, wherever they lie, and how they are kept."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmas_jax import run_folder
from rmas_jax.config import ConfigError, load_config
from rmas_jax.run_folder import RunFolder, agent_sources, weights_digest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "experiments/configs/quickstart.yaml"
AGENT = ROOT / "rmas_jax/assets/embedded/planner"


@pytest.fixture
def planner_in(monkeypatch):
    """Function from a directory and overrides to the planner's source."""
    monkeypatch.chdir(ROOT)

    def find(directory, *overrides):
        config = load_config(CONFIG, [f"system.agents.planner={directory}", *overrides])
        return agent_sources(config)["planner"]

    return find


def test_an_agent_is_its_files_and_how_they_are_kept(planner_in, tmp_path):
    copy = shutil.copytree(AGENT, tmp_path / "copy")
    here = planner_in(AGENT)["digest"]
    assert planner_in(copy) == {"source": str(copy), "revision": None, "digest": here}
    others = [
        planner_in(copy, "runtime.dtype=bfloat16")["digest"],
        planner_in(copy, "runtime.weights=int8")["digest"],
    ]
    for name in ("config.json", "model.safetensors"):
        file = copy / name
        before = file.read_bytes()
        file.write_bytes(before[:-1] + b" ")
        others.append(planner_in(copy)["digest"])
        file.write_bytes(before)
    (copy / "tokenizer_config.json").unlink()  # states depend on ids, and those stand for it
    assert planner_in(copy)["digest"] == here
    assert len({here, *others}) == 5


def test_a_commit_stands_for_the_files_of_the_hub(planner_in, tmp_path, monkeypatch):
    snapshots = tmp_path / "snapshots"
    for commit in ("c1", "c2"):
        snapshots.joinpath(commit).mkdir(parents=True)  # no weights: none are read
    monkeypatch.setattr(
        run_folder, "local_directory", lambda source, patterns: snapshots / str(source)[-2:]
    )
    one, other = planner_in("org/name@c1"), planner_in("org/name@c2")
    assert (one["revision"], other["revision"]) == ("c1", "c2")
    assert one["digest"] != other["digest"]


def test_a_run_belongs_to_agents_and_given_links():
    agents = {"a": {"digest": "1"}, "b": {"digest": "2"}}
    swapped = {"a": {"digest": "2"}, "b": {"digest": "1"}}
    links = {"inner": {"a": np.ones(3, np.float32)}}
    digests = [weights_digest(agents, None), weights_digest(swapped, None)]
    digests.append(weights_digest(agents, links))
    assert len(set(digests)) == 3
    assert weights_digest(dict(reversed(agents.items())), links) == digests[2]


def test_a_run_is_started_once_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"output_dir={tmp_path}"])
    first = RunFolder(config, "digest", "1.0")
    with pytest.raises(ConfigError, match=r"quickstart is in use by another start of this run"):
        RunFolder(config, "digest", "1.0")
    del first
    RunFolder(config, "digest", "1.0")


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    RunFolder(load_config(CONFIG, [f"output_dir={tmp_path}"]), "digest", "1.0")
    assert "No locks available): start no second run there" in caplog.text
