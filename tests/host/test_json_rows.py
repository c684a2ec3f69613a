"""Rows of JSON files: formats, packed files, encodings; faults of rows and of whole files."""

import bz2
import gzip
import itertools
import json
import os
import socket

import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmas_jax.host import json_rows
from rmas_jax.host.errors import InputError
from rmas_jax.host.json_rows import append_line, drop_half_line, json_line, read_json_rows

ROWS = [{"a": 1, "b": "x"}, {"a": [1, 2], "c": {"d": None}}, {"a": "ü\u2028\x85\r\n\u2029"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
RAW_LINES = b"".join(map(json_line, ROWS))
DEEP = "[" * 100_000 + "]" * 100_000
LONG_NUMBER = "9" * 5000


class WrongError(InputError):
    """The error of these tests."""


def read(path, content=None):
    if content is not None:
        path.write_bytes(content)
    return list(read_json_rows(path, error=WrongError))


def refused(path, content=None):
    with pytest.raises(WrongError) as error:
        read(path, content)
    message = str(error.value)
    assert path.name[:20] in message and len(message) < 2000
    return message


FORMATS = {
    "rows.jsonl": LINES,
    "rows.ndjson": RAW_LINES,
    "corpus": LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "no_end.jsonl": LINES[:-1],
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "list.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "LIST.JSON": json.dumps(ROWS).encode(),
    "bom.json": b"\xef\xbb\xbf\n" + json.dumps(ROWS).encode(),
    "raw.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "field.json": json.dumps({"version": 1, "of": {"list": []}, "data": ROWS, "end": "]"}).encode(),
    "lines.json": LINES,
    "lines_after_bom.json": b"\xef\xbb\xbf" + RAW_LINES,
}
PACKED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda raw: pyarrow.compress(raw, "zstd", asbytes=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_holds_the_same_rows(tmp_path, name):
    wanted = list(enumerate(ROWS, start=1))
    assert read(tmp_path / name, FORMATS[name]) == wanted
    for suffix, pack in PACKED.items():
        assert read(tmp_path / f"{name}{suffix}", pack(FORMATS[name])) == wanted


def test_empty_lines_are_no_rows_and_are_counted(tmp_path):
    rows = read(tmp_path / "a.jsonl", b'\n{"a": 1}\n \t\r\n\n{"a": 2}\n\n')
    assert rows == [(2, {"a": 1}), (5, {"a": 2})]
    assert read(tmp_path / "a.json", b'\n\n{"a": 1}\n\n{"a": 2}') == [(3, {"a": 1}), (5, {"a": 2})]
    assert read(tmp_path / "empty.jsonl", b"") == read(tmp_path / "list.json", b" [ ] ") == []


FAULTS = {
    DEEP: "too deep nesting",
    '{"a": ' + '{"b":' * 50_000 + "1" + "}" * 50_001: "too deep nesting",
    f'{{"a": {LONG_NUMBER}}}': "4,300 digits",
    f"[{LONG_NUMBER}]": "4,300 digits",
    '{"a": 1,,}': "Expecting property name",
    '{"a" 1}': "Expecting ':'",
    '{"a": "\x00"}': "Invalid control character",
    "nonsense": "Expecting value",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[:12])
def test_a_row_that_cannot_be_read_is_that_rows_fault(tmp_path, fault):
    good = json.dumps(ROWS[0])
    contents = {
        "a.jsonl": f"{good}\n{fault}\n{good}\n",
        "lines.json": f"{good}\n{fault}\n{good}\n",
        "list.json": f"[{good}, {fault}, {good}]",
        "field.json": f'{{"data": [{good}, {fault}, {good}]}}',
    }
    for name, content in contents.items():
        (_, first), (number, found), (_, last) = read(tmp_path / name, content.encode())
        assert first == last == ROWS[0] and number == 2
        assert isinstance(found, ValueError) and FAULTS[fault] in str(found)


def test_bytes_that_are_no_text_are_the_fault_of_their_line(tmp_path):
    surrogate = b'{"a": "\xed\xa0\x80"}'
    latin = '{"a": "Zürich"}'.encode("latin-1")
    rows = read(tmp_path / "a.jsonl", LINES + latin + b"\n" + surrogate + b"\n" + LINES)
    assert [row for _, row in rows[:3]] == [row for _, row in rows[5:]] == ROWS
    assert str(rows[3][1]) == "not UTF-8: byte 0xfc at 8" and isinstance(rows[4][1], ValueError)
    # A list cannot be taken up again behind them.
    assert "must be text in UTF-8" in refused(tmp_path / "a.json", b"[" + latin + b"]")


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "lines.json"])
def test_other_encodings_are_refused_by_name(tmp_path, encoding, name):
    text = json.dumps(ROWS) if name == "a.json" else LINES.decode()
    message = refused(tmp_path / name, text.encode(encoding))
    assert f"got {encoding.upper()[:6]}" in message and "save it as UTF-8" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"[{", "Cut off"),
        (b'[{"a": "b', "Unterminated string"),
        (b'[{"a": 1}', "Expecting ',' delimiter"),
        (b'[{"a": 1},]', "Expecting value"),
        (b'[{"a": 1} {"a": 2}]', "Expecting ',' delimiter"),
        (b'[{"a": 1}] x', "Extra data"),
        (b'{"a": [], "b": []}', "one such list"),
        (b'{"a": 1}', "one such list"),
        (b'{"a": tru, "b": []}', "Expecting value"),
        (b'{"b": [],}', "Expecting property name"),
        (b'{"a" []}', "Expecting ':' delimiter"),
        (b"3", "one such list"),
        (b"{", "Expecting property name"),
        (b"\x00" * 100, "UTF-32"),
    ],
)
def test_a_file_that_is_no_list_is_refused_as_a_whole(tmp_path, content, words):
    assert words in refused(tmp_path / "rows.json", content)


def test_a_list_in_a_file_of_lines_is_refused_as_that(tmp_path):
    """A list with a row in each line would else be read as its last row, the others as bad ones."""
    by_line = "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n"
    for text in (by_line, json.dumps(ROWS), json.dumps(ROWS, indent=1)):
        message = refused(tmp_path / "rows.jsonl", text.encode())
        assert "line 1" in message and "name a file with a list of rows .json" in message
        assert [row for _, row in read(tmp_path / "rows.json", text.encode())] == ROWS


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_that_is_damaged_is_refused(tmp_path, suffix):
    whole = PACKED[suffix](LINES * 50)
    for content in (whole[: len(whole) // 2], b"no archive", whole[:-1], whole + b"more"):
        refused(tmp_path / f"rows.jsonl{suffix}", content)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "ROW_LIMIT", 1000)
    monkeypatch.setattr(json_rows, "LONG_ROW_LIMIT", 2000)
    monkeypatch.setattr(json_rows, "FEW", 100)
    monkeypatch.setattr(json_rows, "LIST_LIMIT", 5000)
    monkeypatch.setattr(json_rows, "FILE_LIMIT", 100_000)
    monkeypatch.setattr(json_rows, "LINE_LIMIT", 30)
    large = json.dumps({"a": "x" * 2500}).encode()
    rows = read(tmp_path / "a.jsonl", LINES + large + b"\n" + LINES)
    assert [row for _, row in rows[:3]] == [row for _, row in rows[4:]] == ROWS
    assert rows[3][0] == 4 and "larger than 1000 bytes" in str(rows[3][1])
    long = {"a": "x" * 1500}
    (_, of_few), (_, of_many) = read(
        tmp_path / "long.jsonl", f"{json.dumps(long)}\n{json.dumps([1] * 500)}\n".encode()
    )
    assert of_few == long and "larger than 1000 bytes" in str(of_many)
    assert "a row must be at most 1000 bytes" in refused(tmp_path / "a.json", b"[" + large + b"]")
    many = b"[" + b",".join([json.dumps(ROWS[0]).encode()] * 400) + b"]"
    assert "must be at most 4.883 KiB" in refused(tmp_path / "b.json", many)
    assert "at most 30 lines" in refused(tmp_path / "b.jsonl", b"\n" * 31)
    assert "must be at most 97.66 KiB" in refused(tmp_path / "c.jsonl", b" " * 100_001)
    bomb = gzip.compress(b"0" * 10**7)
    assert "must unpack to at most 97.66 KiB" in refused(tmp_path / "c.jsonl.gz", bomb)
    assert "must unpack to at most 97.66 KiB" in refused(tmp_path / "c.json.gz", bomb)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "nowhere.jsonl").symlink_to("nothing")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as listening, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # the address of a socket is short
        listening.bind("socket.jsonl")
        kinds = ("pipe", "device", "nowhere", "loop", "folder", "socket")
        messages = [refused(tmp_path / f"{kind}.jsonl") for kind in kinds]
    assert "got a pipe" in messages[0] and "got a device" in messages[1]
    sparse = tmp_path / "sparse.jsonl"
    sparse.touch()
    os.truncate(sparse, 10**12)
    assert "must be at most 4 GiB, got 931.3 GiB" in refused(sparse)


TEXTS = st.text(st.characters(), max_size=8)  # lone surrogates and line breaks of all sorts, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), min_size=2, max_size=4))
@example([{"\u2028": "\x85\n"}, {"\ud800": "\udfff"}])
def test_what_is_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for row in rows:
        append_line(folder / "a.jsonl", row)
    assert [row for _, row in read(folder / "a.jsonl")] == rows
    (folder / "a.json").write_bytes(json.dumps(rows, indent=1).encode())
    assert [row for _, row in read(folder / "a.json")] == rows  # as json.loads has it


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_change_of_bytes_ends_in_another_error(tmp_path_factory, data):
    name = data.draw(st.sampled_from([*FORMATS, "a.jsonl.gz", "a.json.zst"]))
    whole = FORMATS.get(name) or PACKED[f".{name.rpartition('.')[2]}"](LINES)
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"\n")
    path = tmp_path_factory.mktemp("rows") / name
    path.write_bytes(content)
    try:
        rows = list(itertools.islice(read_json_rows(path, error=WrongError), 1000))
    except WrongError as error:
        assert name in str(error) and len(str(error)) < 2000
    else:
        assert all(number >= 1 for number, _ in rows)


@pytest.mark.parametrize("half", [b"", b'{"a": ', b"x" * 200_000])
def test_half_a_line_at_the_end_is_dropped(tmp_path, half):
    path = tmp_path / "a.jsonl"
    for whole in (LINES, b""):
        path.write_bytes(whole + half)
        drop_half_line(path, error=WrongError)
        assert path.read_bytes() == whole
    drop_half_line(tmp_path / "nothing.jsonl", error=WrongError)
    assert not (tmp_path / "nothing.jsonl").exists()
