import os
import socket

import pytest

from rmas_jax.host.errors import MESSAGE_LIMIT, InputError, clipped, describe, shown
from rmas_jax.host.reading import check_regular, open_regular, read_bytes, read_json, read_text
from rmas_jax.host.yaml_files import MAX_VALUES, parse_yaml, read_yaml


class OwnError(InputError):
    pass


def irregular(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.close()
    return {
        "/dev/zero": "got a device",
        "/dev/urandom": "got a device",
        tmp_path / "pipe": "got a pipe",
        tmp_path / "socket": "got a socket",
        tmp_path: "got a folder",
        tmp_path / "loop": "cannot be read",
        tmp_path / "dangling": "no such file (a broken link)",
        tmp_path / "none": "no such file",
        "nul\0byte": "cannot be read",
        tmp_path / ("x" * 300): "cannot be read",
        tmp_path / ("x/" * 5000): "cannot be read",
    }


def test_only_regular_files_are_opened(tmp_path):
    for path, reason in irregular(tmp_path).items():
        for read in (check_regular, open_regular, read_bytes):
            with pytest.raises(OwnError) as caught:
                read(path, at_most=100, error=OwnError)
            assert reason in str(caught.value)
            assert len(str(caught.value)) < 500


def test_files_of_proc_and_large_ones_are_bounded(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, at_most=100, error=OwnError) == b"x" * 100
    with pytest.raises(OwnError, match=r"must be at most 99 bytes, got 100 bytes"):
        read_bytes(path, at_most=99, error=OwnError)
    with pytest.raises(OwnError, match="got more"):  # says that its size is 0
        read_bytes("/proc/self/maps", at_most=10, error=OwnError)


def test_what_git_lfs_has_not_fetched_is_named(tmp_path):
    path = tmp_path / "file"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n"
    path.write_text(pointer)
    for read in (open_regular, read_bytes):
        with pytest.raises(OwnError, match=r"file: is a pointer of git-lfs.*git lfs pull"):
            read(path, at_most=10**6, error=OwnError)
    for text in (pointer[1:], pointer * 20, "version", ""):
        path.write_text(text)
        assert read_text(path, at_most=10**6, error=OwnError) == text


def test_texts_are_utf_8(tmp_path):
    path = tmp_path / "file"
    path.write_text("süß", encoding="utf-8-sig")
    assert read_text(path, at_most=100, error=OwnError) == "süß"
    path.write_text("süß", encoding="utf-16")
    with pytest.raises(OwnError, match=r"must be text in UTF-8.*UTF-16"):
        read_text(path, at_most=100, error=OwnError)


@pytest.mark.parametrize("text", ["[" * 10**5, "{", "[1]", "1" * 5000, '"\\ud800"', ""])
def test_json_that_is_no_object(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(OwnError, match=r"file\.json: "):
        read_json(path, at_most=10**6, error=OwnError)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k0: 0}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{','.join(['*a' if not i else f'*m{i - 1}'] * 9)}]}}\n" for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        MERGES,
        "a: &a [*a]",
        "[" * 5000,
        "a: 1\na: 2",
        "? [1]\n: 2",
        "a: !!timestamp 2024-13-01",
        "a: !!timestamp x",
        "a: !!int {}",
        "a: !!binary x",
        "a: !!python/object:os.system x",
        "a: " + "1" * 5000,
        "\n".join(f"k{i}: 0" for i in range(100_000)),
        "\n".join(f"k{i}: 0" for i in range(MAX_VALUES // 2 + 1)),
        "a: \x00",
        "- a\nb",
    ],
    ids=lambda text: text[:20],
)
def test_yaml_is_bounded_and_strict(text):
    with pytest.raises(OwnError, match=r"^here: ") as caught:
        parse_yaml(text, source="here", error=OwnError)
    assert len(str(caught.value)) < 500


def test_yaml_means_what_1_2_says(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("base: &b {x: 1e-3, y: yes}\nmore: {<<: *b, d: 2024-13-01}\n")
    assert read_yaml(path, error=OwnError) == {
        "base": {"x": 1e-3, "y": "yes"},
        "more": {"x": 1e-3, "y": "yes", "d": "2024-13-01"},
    }
    assert parse_yaml("", source="here", error=OwnError) is None


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda: nested(10**5),
        lambda: "x" * 10**7,
        lambda: 10**10**5,
        lambda: {1: 2, "a": [3] * 100},
        lambda: ["\ud800"],
    ],
)
def test_values_in_messages_are_short(make):
    value = make()
    assert len(shown(value)) <= 80
    shown(value).encode()


def test_messages_are_short_and_can_be_printed():
    assert clipped("short") == "short"
    text = clipped("a\ud800\x1b[31m" + "x" * 10**6 + "\nz")
    assert len(text) <= MESSAGE_LIMIT and text.startswith(r"a\ud800\x1b[31m") and "\nz" in text
    error = OSError(28, "No space left on device", "/data/file")
    assert describe(error).startswith("/data/file: No space left on device; ")
    noted = OwnError("main")
    noted.add_note("more")
    assert describe(noted) == "main\nmore"
    assert describe(MemoryError()) == "not enough memory"
