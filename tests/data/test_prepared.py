"""Prepared data: checked before use, prepared again after damage; parts of splits."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import tensorflow_datasets as tfds

from rmas_jax.config import DataConfig
from rmas_jax.data import DataError, records, role_texts
from rmas_jax.data.loading import load_dataset
from rmas_jax.host.errors import describe

ROLES = ("planner", "critic", "solver")
COUNT = 40


def row(i):
    return {"question": f"{i}?", "plan": f"p {i}", "refined_plan": f"b {i}", "answer": str(i)}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(COUNT)) + "no row\n")
    return path


def load(path, data_dir, **config):
    config = {"test_share": 0.4} | config
    return load_dataset(
        DataConfig(dataset=str(path), **config), roles=ROLES, rounds=2, data_dir=data_dir
    )


def everything(dataset):
    return [dataset.load(split) for split in ("train", "validation", "test")], list(
        dataset.bad_rows
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
    "a line more": lambda path: path.write_bytes(path.read_bytes() + b"{}\n"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "another type": lambda path: path.write_text("[1]"),
    "nested": lambda path: path.write_text("[" * 10**5),
}
FILES = ("-train.", "-test.", "dataset_info.json", "features.json", "bad_rows", "checksums")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_made_anew_and_said(rows, tmp_path, caplog, file, damage):
    wanted = everything(load(rows, tmp_path / "data"))
    assert not caplog.messages
    (path,) = (tmp_path / "data").glob(f"*/role_texts/*/*{file}*")
    DAMAGES[damage](path)
    assert everything(load(rows, tmp_path / "data")) == wanted
    (message,) = caplog.messages
    assert str(path.parent) in message and path.name in message and "prepared again" in message
    assert everything(load(rows, tmp_path / "data")) == wanted and len(caplog.messages) == 1


def test_folders_that_are_half_there_are_made_anew(rows, tmp_path, caplog):
    wanted = everything(load(rows, tmp_path / "data"))
    (folder,) = (tmp_path / "data").glob("*/role_texts/*")
    for i in range(4):
        shutil.rmtree(folder)
        match i:
            case 0:
                folder.mkdir()
            case 1:
                folder.write_text("a file")
            case 2:
                folder.symlink_to("nothing")
            case 3:  # of a process that was killed while it wrote
                (folder.parent / f"incomplete.ABC123_{folder.name}").mkdir()
        assert everything(load(rows, tmp_path / "data")) == wanted
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        if folder.is_symlink():
            pytest.fail("a link is no data")
    (folder / "more.array_record").touch()
    load(rows, tmp_path / "data")
    assert "more.array_record is not in checksums.json" in caplog.messages[-1]


def test_the_embedded_task_is_checked_too(tmp_path, caplog):
    def train():
        dataset = load_dataset(DataConfig(), roles=ROLES, rounds=1, data_dir=tmp_path)
        return dataset.load("train[:50]")

    wanted = train()
    (path,) = tmp_path.glob("relay/*/*train*")
    flip(path)
    assert train() == wanted and "prepared again" in caplog.text
    assert not (tmp_path / "downloads").exists()  # tfds makes one, and nothing is in it


def test_what_cannot_be_used_leaves_nothing_behind(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("[]\n")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    for path in (bad, tmp_path / "cut.parquet"):
        with pytest.raises(DataError):
            load(path, tmp_path / "out" / "data")
        assert not (tmp_path / "out").exists()


WRITE = """
import sys
from pathlib import Path
from rmas_jax.config import DataConfig
from rmas_jax.data.loading import load_dataset
from rmas_jax.host.errors import USER_ERRORS, print_error
dataset, out = sys.argv[1:]
try:
    load_dataset(DataConfig(dataset=dataset), roles=("planner", "critic", "solver"), rounds=2,
              data_dir=Path(out) / "data")
except USER_ERRORS as error:
    print_error(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("kib", [40, 1000, 2600])
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, kib):
    """On a file system of its own, which is mounted in a namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size={kib}k tmpfs {disk} || exit 77; "
        f'"{sys.executable}" -c "$0" relay {disk}; code=$?; find {disk} -mindepth 1; exit $code'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, WRITE], capture_output=True, text=True, check=False
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.returncode == 2, done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert str(disk) in message and os.strerror(errno.ENOSPC) in message and "free space" in message
    assert "Traceback" not in done.stderr and "/" not in done.stdout.split("...")[-1].strip()


def test_two_at_once_prepare_once(rows, tmp_path, monkeypatch):
    made = []
    init = role_texts.RoleTexts.download_and_prepare
    monkeypatch.setattr(
        role_texts.RoleTexts,
        "download_and_prepare",
        lambda self, **options: (made.append(1), init(self, **options)),
    )
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(everything(load(rows, tmp_path / "data"))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 3 and found[0] == found[1] == found[2]


def test_parts_of_splits_are_those_of_tfds(rows, tmp_path):
    dataset = load(rows, tmp_path / "data")
    (folder,) = (tmp_path / "data").glob("*/role_texts/*")
    builder = tfds.builder_from_directory(str(folder))
    count = builder.info.splits["test"].num_examples
    assert 10 < count < 25
    bounds = ["", "0", "1", "7", str(count), "-1", "-5", str(-count), "0%", "10%", "33%", "50%"]
    bounds += ["100%", "-10%", "-37%", "-100%"]
    for start, stop in itertools.product(bounds, bounds):
        part = f"test[{start}:{stop}]"
        if (start, stop) == ("", ""):  # tfds refuses it
            assert dataset.load(part) == dataset.load("test")
            continue
        if start and stop and start.endswith("%") != stop.endswith("%"):  # tfds: both percent
            with pytest.raises(DataError, match="both ends must be rows, or both percent"):
                dataset.load(part)
            continue
        try:
            wanted = [bytes(r["id"]).decode() for r in builder.as_data_source(split=part)]
        except ValueError as error:  # tfds has no source of no rows
            assert "0 length" in str(error)
            wanted = []
        assert [row.id for row in dataset.load(part)] == wanted, part


NO_PARTS = ("test+train", "test + train", "test[:2]+test[2:4]", "all", "tset", "TEST", "", " test")
NO_PARTS += ("test ", "test [:2]", "test[: 2]", "test[5]", "test[:1shard]", "test[:1.5%]", "test[")
NO_PARTS += ("test[::2]", "[:3]", "test[:1_0]", "test\0", "t\ud800", "x" * 5000)


@pytest.mark.parametrize("split", [*NO_PARTS, f"test[:{'9' * 5000}]"])
def test_what_is_no_split_and_no_part_of_one_is_refused(rows, tmp_path, split):
    dataset = load(rows, tmp_path / "data")
    with pytest.raises(DataError) as error:
        dataset.load(split)
    message = describe(error.value)
    assert "must be one of 'train', 'test', 'validation'" in message and len(message) < 500


@pytest.mark.parametrize("bound", ["500", "-500", "101%", "-101%", "999999999999999"])
def test_a_part_must_lie_within_its_split(rows, tmp_path, bound):
    dataset = load(rows, tmp_path / "data")
    for part in (f"test[:{bound}]", f"test[{bound}:]"):
        with pytest.raises(DataError, match=f"{bound} must be between"):
            dataset.load(part)


@pytest.mark.parametrize("name", ["all", "", "../x", "a/b", "te st", "test[:5]", "a.b", "x" * 300])
def test_names_of_splits_are_names(rows, tmp_path, name):
    files = {"train": str(rows), name: str(rows)}
    with pytest.raises(DataError, match="the name of a split must be at most 60 letters"):
        load_dataset(
            DataConfig(dataset="files", files=files), roles=ROLES, rounds=1, data_dir=tmp_path
        )


def test_the_text_of_a_split_is_bounded(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(role_texts, "TEXT_LIMIT", 5000)
    with pytest.raises(DataError, match=r"rows must hold at most 4\.883 KiB of text"):
        load(rows, tmp_path / "data")


def test_no_error_of_the_writer_is_a_traceback(rows, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("write() failed: Read-only file system; writing /somewhere")

    monkeypatch.setattr(role_texts.RoleTexts, "download_and_prepare", fail)
    with pytest.raises(DataError, match="cannot be written: write"):
        load(rows, tmp_path / "data")
    assert records.damage(tmp_path) is not None and not (tmp_path / "data").exists()
