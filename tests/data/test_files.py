"""Which files of a folder are data, as Spark, Dask, macOS, editors and the hub leave them."""

import json
import os
import shutil
import socket
import subprocess

import pyarrow
import pyarrow.parquet
import pytest

from rmas_jax.data import DataError, files
from rmas_jax.data.files import data_files, files_of_one_split
from rmas_jax.data.reading import look_through, partition_fields, read_rows

ROWS = [{"question": f"{i}?", "answer": str(i)} for i in range(4)]


def write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def names(folder):
    return {split: [name for name, _ in found.named] for split, found in data_files(folder).items()}


def refused(call, *arguments):
    with pytest.raises(DataError) as error:
        call(*arguments)
    assert len(str(error.value)) < 2000
    return str(error.value)


@pytest.mark.parametrize(
    "beside",
    [
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        "more/.ipynb_checkpoints/test-checkpoint.jsonl",
        ".hidden.jsonl",
        "._train.jsonl",
        "__MACOSX/train.jsonl",
        "__MACOSX/._train.jsonl",
        "__pycache__/test.jsonl",
        ".git/dev.jsonl",
        ".cache/huggingface/test.jsonl",
        "_temporary/0/_temporary/attempt_1/part-0.jsonl",
        "_delta_log/00000000000000000000.json",
        "_spark_metadata/0.json",
        "~$train.jsonl",
        "train.jsonl~",
        "#train.jsonl#",
        "train.jsonl.bak",
        "train.jsonl.crc",
        ".train.jsonl.crc",
        "train.jsonl.swp",
        "train.jsonl.tmp",
        "_SUCCESS",
        "_metadata",
        "_common_metadata",
        "_committed_123",
        ".DS_Store",
        "README.md",
        "stats.csv",
        "dataset_info.json",
        "dataset_dict.json",
        "state.json",
        "lost+found/test.jsonl",
    ],
)
def test_names_of_no_data_are_passed_over(tmp_path, beside):
    write(tmp_path / "train.jsonl")
    write(tmp_path / beside, [{"question": "of no data?", "answer": "0"}])
    assert names(tmp_path) == {"train": ["train.jsonl"]}


def test_a_hidden_file_that_is_named_is_read(tmp_path):
    """Only names below a folder are looked at, not those of the folder or file itself."""
    file = write(tmp_path / ".cache" / "_data" / "._rows.jsonl")
    assert files_of_one_split(file).named == (("._rows.jsonl", file),)
    write(tmp_path / ".cache" / "_data" / "rows.jsonl")
    assert names(file.parent) == {"train": ["rows.jsonl"]}


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (
            ["train.parquet/part-00000-ab.c000.snappy.parquet", "train.parquet/part-00001.parquet"],
            {"train": [0, 1]},
        ),
        (
            ["train.parquet/part.0.parquet", "test.parquet/part.0.parquet"],
            {"train": [0], "test": [1]},
        ),
        (
            ["split=train/p.parquet", "split=validation/p.parquet", "split=test/p.parquet"],
            {"train": [0], "validation": [1], "test": [2]},
        ),
        (
            ["out/train.json/part-0.json", "out/dev.json/part-0.json"],
            {"train": [0], "validation": [1]},
        ),
        (["train.jsonl.gz", "test.jsonl.gz"], {"train": [0], "test": [1]}),
        (["rows.JSONL", "Test.JSONL"], {"train": [0], "test": [1]}),
        (
            ["TrainData.jsonl", "testset.jsonl", "valset1.jsonl", "x_TestSet.jsonl"],
            {"train": [0], "validation": [2], "test": [1, 3]},
        ),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            {"train": [0, 1]},
        ),
    ],
)
def test_folders_that_are_called_as_files_are_read(tmp_path, written, wanted):
    for name in written:
        write(tmp_path / name)
        write(tmp_path / name).with_name("_SUCCESS").touch()
    found = names(tmp_path)
    assert {split: set(some) for split, some in found.items()} == {
        split: {written[i] for i in places} for split, places in wanted.items()
    }
    part = tmp_path / written[0]
    if part.parent.suffix == ".parquet":  # also where data.files names it
        assert files_of_one_split(part.parent).named[0][1] == part


def test_fields_in_the_names_of_folders_are_fields_of_rows(tmp_path):
    for level, topic in [(1, "a%20b"), (2, "007"), (3, "__HIVE_DEFAULT_PARTITION__")]:
        write(tmp_path / f"difficulty={level}" / f"topic={topic}" / "p.parquet", ROWS[:1])
    (found,) = data_files(tmp_path).values()
    rows = [row for name, path in found.named for _, row in read_rows(name, path, ["question"])]
    assert [(row["difficulty"], row["topic"]) for row in rows] == [
        (1, "a b"),
        (2, "007"),
        (3, None),
    ]
    assert look_through(found, {"difficulty"}).fields >= {"difficulty", "topic", "question"}
    # The row's own field takes precedence.
    write(tmp_path / "own" / "answer=9" / "p.jsonl", ROWS[:1])
    (own,) = data_files(tmp_path / "own").values()
    assert [row["answer"] for name, path in own.named for _, row in read_rows(name, path, [])] == [
        "0"
    ]
    assert partition_fields("a=1=2/=3/b/c=d.jsonl") == {"a": "1=2"}


def test_links_are_followed_and_loops_of_them_end(tmp_path):
    write(tmp_path / "elsewhere" / "b.jsonl")
    write(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data" / "linked").symlink_to("../elsewhere")
    (tmp_path / "data" / "again").symlink_to("../elsewhere")
    (tmp_path / "data" / "up").symlink_to("..")
    (tmp_path / "data" / "file.jsonl").symlink_to("../elsewhere/b.jsonl")  # as the hub's snapshots
    found = names(tmp_path / "data")["train"]
    assert len(found) == 3 and found[0] == "a.jsonl"  # every folder once


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "nowhere", "loop"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path = tmp_path / "data" / f"x{suffix}"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "socket":
                listening.bind(f"data/x{suffix}")
            case _:
                path.symlink_to({"device": "/dev/zero", "nowhere": "nothing", "loop": path}[kind])
        for named in (path, path.parent):
            assert str(path) in refused(data_files, named)
            assert str(path) in refused(files_of_one_split, named)


def test_a_split_in_a_format_that_is_not_read_is_refused(tmp_path):
    """Else test rows would be taken from those of train, without a warning."""
    write(tmp_path / "train.jsonl")
    (tmp_path / "test.csv").write_text("question,answer\n")
    message = refused(data_files, tmp_path)
    assert "test.csv" in message and "the split test" in message and "data.files" in message


@pytest.mark.parametrize(
    "beside", ["heldout.jsonl", "latest.jsonl", "predictions/out.jsonl", "data.jsonl"]
)
def test_a_file_of_no_split_beside_files_of_train_is_refused(tmp_path, beside):
    """Else held-out rows would be trained on, without a warning."""
    write(tmp_path / "train.jsonl")
    write(tmp_path / beside)
    message = refused(data_files, tmp_path)
    assert f"file names must have a split beside files of train, got {beside}" in message
    assert "data.files" in message
    # A folder named for one split has files of that split alone.
    assert {name for name, _ in files_of_one_split(tmp_path).named} == {"train.jsonl", beside}
    (tmp_path / "train.jsonl").rename(tmp_path / "test.jsonl")
    assert names(tmp_path) == {"train": [beside], "test": ["test.jsonl"]}


def test_what_is_there_instead_of_data_is_named(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").touch()
    (tmp_path / "state.json").write_text("{}")
    assert "got .arrow" in refused(data_files, tmp_path)
    for name in ("rows.tsv", "rows.parquet.gz", "rows"):
        (tmp_path / name).touch()
        message = refused(data_files, tmp_path / name)
        assert f"{name}: must be one of .parquet, .jsonl, .ndjson, .json" in message


def test_packed_and_plain_files_of_one_folder_may_be_the_same_rows(tmp_path):
    write(tmp_path / "rows.jsonl")
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz")
    assert "must be of one format, got .jsonl and .jsonl.gz" in refused(data_files, tmp_path)


def test_folders_are_looked_through_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ENTRIES", 10)
    for i in range(11):
        write(tmp_path / f"{i}.jsonl")
    assert "must hold at most 10 files and folders, got more" in refused(data_files, tmp_path)


def test_folders_may_be_deeper_than_python_recurses(tmp_path):
    deep = tmp_path / "deep"
    for _ in range(1100):
        deep.mkdir()
        deep /= "d"
    write(deep.parent / "a.jsonl")
    try:
        assert len(names(tmp_path)["train"]) == 1
    finally:
        subprocess.run(["rm", "-r", tmp_path / "deep"], check=True)  # shutil cannot


def test_names_that_no_text_can_hold(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert names(tmp_path) == {"train": ["\\xff.jsonl"]}
    for path in ("a\0b.jsonl", "x" * 5000 + ".jsonl", "\ud800.jsonl"):
        refused(data_files, tmp_path / path)
