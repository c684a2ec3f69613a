"""Outputs that cannot be written are said before anything is run."""

import pytest

from experiments.studies import seeds, training_choices
from rmas_jax.cli.convert import main as convert
from rmas_jax.cli.report import main as report
from rmas_jax.host.errors import BAD_INPUT


@pytest.mark.parametrize("study", [seeds, training_choices])
@pytest.mark.parametrize("out", ["file", "file/deeper", "n" * 300])
def test_a_study_needs_a_folder(study, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "run", None)
    (tmp_path / "file").touch()
    assert study.main(["--out", str(tmp_path / out)]) == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path}")


@pytest.mark.parametrize(
    ("dst", "words"),
    [
        (
            "links.bin",
            "must end in .pt or .safetensors, or in / as a new folder, got ",
        ),
        ("links.pth", "links.pth"),
        ("file", "must be a folder"),
        ("folder.pt", "must be a regular file, got a folder"),
        ("file/x.safetensors", "cannot be written (Not a directory)"),
        ("n" * 300 + ".pt", "cannot be written (File name too long)"),
    ],
)
def test_links_are_converted_to_files_and_folders_alone(dst, words, tmp_path, capsys):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    source = str(tmp_path / "missing.safetensors")
    assert convert([source, str(tmp_path / dst)]) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: DST ") and words in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("folder", ["a\0b", "n" * 300, "n" * 5000, "missing", "file"])
def test_a_report_needs_the_folder_of_a_run(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert report([str(tmp_path / folder)]) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and len(message) < 2000
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
