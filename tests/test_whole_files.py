"""What a kill in the middle of a write leaves: the old file or the new one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rmas_jax import run_folder
from rmas_jax.checkpoints import load_links, save_links
from rmas_jax.config import ConfigError, load_config
from rmas_jax.run_folder import RunFolder
from rmas_jax.training.curves import Curves
from rmas_jax.whole_files import write_whole

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "experiments/configs/quickstart.yaml"


@pytest.fixture
def killed(monkeypatch):
    """Function that calls another, which dies when half of its first file is written."""

    def die_in(call):
        def half(path, content, *_, **__):
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "write_bytes", half)
            patch.setattr(Path, "write_text", lambda path, text, **_: half(path, text.encode()))
            call()

    return die_in


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Function that opens the folder of one run."""
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"output_dir={tmp_path}"])
    return lambda: RunFolder(config, "digest", "1.0")


def test_a_file_is_the_old_or_the_new_one(tmp_path, killed):
    path = tmp_path / "a.json"
    write_whole(path, "ä")
    assert path.read_bytes() == "ä".encode()
    killed(lambda: write_whole(path, b"other"))
    assert path.read_bytes() == "ä".encode()
    write_whole(path, b"other")
    assert path.read_bytes() == b"other"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_curves_and_links_survive_a_kill(tmp_path, killed):
    curves = Curves(tmp_path / "metrics.jsonl")
    for step in range(3):
        curves.write("outer", "a", step, loss=1.0)
    before = curves.path.read_bytes()
    killed(lambda: curves.truncate("a", 2))
    assert curves.path.read_bytes() == before
    links = {"inner": {"a": {"w": np.ones(3, np.float32)}}}
    save_links(tmp_path / "links.safetensors", links)
    killed(lambda: save_links(tmp_path / "links.safetensors", {"inner": {}}))
    np.testing.assert_array_equal(load_links(tmp_path / "links.safetensors")["inner"]["a"]["w"], 1)


def test_a_run_that_was_killed_at_once_starts_again(folder, killed):
    killed(folder)
    with folder() as made:
        identity = made.path / run_folder.IDENTITY
        first = identity.stat().st_ino
        made.stage("one", lambda: None)
        killed(lambda: made.stage("two", lambda: None))
        assert list(json.loads(made.marks.read_text())) == ["one"]
        assert list(json.loads(made.asked.read_text())) == ["one"]
    with folder():
        pass
    assert identity.stat().st_ino == first  # written once


def test_an_identity_that_is_no_json_is_said_with_its_path(folder):
    with folder() as made:
        identity = made.path / run_folder.IDENTITY
    identity.write_text('{"config": ')
    with pytest.raises(ConfigError, match=r"identity\.json: is not JSON"):
        folder()
