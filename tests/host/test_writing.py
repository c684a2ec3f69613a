"""Where files and folders cannot be written."""

import os

import pytest

from rmas_jax.host.errors import InputError
from rmas_jax.host.writing import check_output_file, check_output_folder


class OwnError(InputError):
    """The kind that a caller asks for."""


@pytest.fixture
def place(tmp_path):
    """A folder with things in it that are no files to write."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere/at/all", tmp_path / "dangling")
    os.symlink("loop", tmp_path / "loop")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("folder", "must be a regular file, got a folder"),
        ("pipe", "must be a regular file, got a pipe"),
        ("/dev/full", "must be a regular file, got a device"),
        ("missing/x", "must be in an existing folder"),
        ("dangling", "must be in an existing folder"),
        ("file/x", "cannot be written (Not a directory)"),
        ("loop", "cannot be written (Too many levels of symbolic links)"),
        ("n" * 300, "cannot be written (File name too long)"),
        ("a\0b", "must be a path without NUL"),
        ("a\ud800b", "must be a path without NUL"),
    ],
)
def test_no_file_is_written_there(place, path, words):
    with pytest.raises(OwnError) as caught:
        check_output_file(place / path, option="--out", error=OwnError)
    message = str(caught.value)
    assert message.startswith("--out ") and words in message and len(message) < 700


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "must be a folder"),
        ("file/x/y", "cannot be written (Not a directory)"),
        ("pipe", "must be a folder"),
        ("dangling", "must be a folder, got a broken link"),
        ("a\0b", "must be a path without NUL"),
        ("n" * 300, "cannot be written (File name too long)"),
    ],
)
def test_no_folder_is_made_there(place, path, words):
    with pytest.raises(OwnError) as caught:
        check_output_folder(place / path, option="--out", error=OwnError)
    assert words in str(caught.value)


def test_what_can_be_written_is_left_as_it_is(place, monkeypatch):
    before = sorted(place.rglob("*"))
    for path in ("file", "new", "folder/new"):
        check_output_file(place / path, option="--out", error=OwnError)
    check_output_file(place / "a/b/new", option="--out", error=OwnError, makes_folder=True)
    for path in ("folder", "new/deep"):
        check_output_folder(place / path, option="--out", error=OwnError)
    check_output_file(place / "x.SVG", option="--out", error=OwnError, suffixes=(".svg", ".png"))
    assert sorted(place.rglob("*")) == before and (place / "file").read_text() == "kept"
    with pytest.raises(OwnError, match=r"must end in \.svg, \.png, got '\.abc'"):
        check_output_file(
            place / "x.abc", option="--out", error=OwnError, suffixes=(".svg", ".png")
        )
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    for check, path in (
        (check_output_file, "file"),
        (check_output_file, "new"),
        (check_output_folder, "folder"),
        (check_output_folder, "new"),
    ):
        with pytest.raises(OwnError, match="read-only"):
            check(place / path, option="--out", error=OwnError)
