"""What a kill in the middle of a write, or a full disk, leaves: the old file or the new one."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from rmas_jax.config import ConfigError, load_config
from rmas_jax.host import atomic
from rmas_jax.host.atomic import append, new_folder, write_atomic
from rmas_jax.host.errors import InputError, describe
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.links import Links
from rmas_jax.runs.folder import RunStep, open_folder
from rmas_jax.training.curves import Curves

ROOT = Path(__file__).parents[2]
CONFIG = "quickstart"


@pytest.fixture
def killed(monkeypatch):
    """Function that calls another, which dies when half of its first file is written."""

    def die_in(call):
        def half(file, content):
            file.write(content[: len(content) // 2])
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(atomic, "_write", half)
            call()

    return die_in


@pytest.fixture
def full(monkeypatch):
    """Function that calls another on a disk that takes half of a file, and returns the error."""

    def fails_in(call):
        def half(file, content):
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` does: no name

        with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
            patch.setattr(atomic, "_write", half)
            call()
        return caught.value

    return fails_in


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Function that opens the folder of one run."""
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"output_dir={tmp_path}"])
    steps = [RunStep(name) for name in ("one", "two")]
    return lambda: open_folder(config, {"weights": "digest"}, steps)


def test_a_file_is_the_old_or_the_new_one(tmp_path, killed):
    path = tmp_path / "a.json"
    write_atomic(path, "ä")
    assert path.read_bytes() == "ä".encode()
    killed(lambda: write_atomic(path, b"other"))
    assert path.read_bytes() == "ä".encode()
    write_atomic(path, b"other")
    assert path.read_bytes() == b"other"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_said_with_the_path_and_leaves_what_was_there(tmp_path, full):
    whole, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    write_atomic(whole, "old")
    append(lines, "old\n")
    for path, call in (
        (whole, lambda: write_atomic(whole, "other")),
        (lines, lambda: append(lines, "other\n")),
    ):
        before = path.read_bytes()
        message = describe(full(call))
        assert message.startswith(f"{path}: No space left on device; finished files are complete")
        assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.jsonl"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["a", "a.partial"])
def test_what_is_no_regular_file_is_neither_replaced_nor_waited_for(tmp_path, make, name):
    make(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: must be a regular file, got a (pipe|folder)"):
        write_atomic(tmp_path / "a", "text")
    if name == "a":
        with pytest.raises(InputError, match="must be a regular file"):
            append(tmp_path / "a", "text")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_curves_and_links_survive_a_kill(tmp_path, killed):
    curves = Curves(tmp_path / "metrics.jsonl")
    for step in range(3):
        curves.write("outer", "a", step, loss=1.0)
    before = curves.path.read_bytes()
    killed(lambda: curves.truncate("a", 2))
    assert curves.path.read_bytes() == before
    weight = {"w": np.ones(3, np.float32)}
    links = Links({"a": weight}, {"a->b": weight})
    save_links(tmp_path / "links.safetensors", links)
    killed(lambda: save_links(tmp_path / "links.safetensors", Links({}, {})))
    np.testing.assert_array_equal(load_links(tmp_path / "links.safetensors").inner["a"]["w"], 1)


def test_a_run_that_was_killed_at_once_starts_again(folder, killed):
    killed(folder().__enter__)
    with folder() as made:
        identity = made.files.identity
        first = identity.stat().st_ino
        made.do("one", lambda: None)
        killed(lambda: made.do("two", lambda: None))
        assert list(json.loads(made.files.timings.read_text())) == ["one", "crc32"]
        assert list(json.loads(made.files.steps.read_text())) == ["one", "crc32"]
    with folder():
        pass
    assert identity.stat().st_ino == first  # written once


def test_an_identity_that_is_no_json_is_said_with_its_path(folder):
    with folder() as made:
        identity = made.files.identity
    identity.write_text('{"config": ')
    with (
        pytest.raises(ConfigError, match=r"identity\.json: must be JSON: .*remove"),
        folder(),
    ):
        pass


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "above" / "folder"

    def fill(*, fails):
        with new_folder(path, error=ConfigError) as half:
            (half / "inside").mkdir()
            (half / "inside" / "file").write_text("whole")
            assert not path.exists() and half.parent == path.parent
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(fails=True)
    assert not [*path.parent.iterdir()]
    half = path.with_name("folder.partial")  # of a process that was killed
    half.mkdir()
    (half / "old").write_text("half")
    fill(fails=False)
    assert [p.name for p in path.parent.iterdir()] == ["folder"]
    assert sorted(p.name for p in path.rglob("*")) == ["file", "inside"]
    with pytest.raises(ConfigError, match=r"folder: must not exist yet"):
        fill(fails=False)
