"""Copies of folders on object storage: what is uploaded, in which order, and by one start alone."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import fake_storage
import fsspec
import pytest

from rmas_jax.host import storage
from rmas_jax.host.atomic import append, write_atomic
from rmas_jax.host.storage import Lease, Mirror, StorageError, child, flush, is_remote, written

URL = "fake://bucket/runs/mine"


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv(fake_storage.ROOT, str(tmp_path / "storage"))
    fake_storage.READY.clear()
    return tmp_path / "storage" / "bucket" / "runs" / "mine"


@pytest.fixture
def host(tmp_path):
    """Makes the mirror of a process of its own."""

    def make(name, **options):
        system, root = fsspec.core.url_to_fs(URL)
        return Mirror(URL, tmp_path / name, system, root, **options)

    return make


def test_paths_and_urls():
    assert is_remote("gs://bucket/a") and is_remote(URL)
    assert not any(map(is_remote, ["runs", "/gs/bucket", "C:/runs", "gs:/bucket", "gs://"]))
    assert child(URL, "a", "b") == f"{URL}/a/b" and child("runs", "a") == "runs/a"
    assert storage.local_copy("runs/x") == Path("runs/x")
    copy = storage.local_copy(URL)
    assert copy.parent.name == "runs" and str(os.getpid()) in copy.parts
    assert storage.open_mirror(URL) is storage.open_mirror(URL)  # one copy, one record of it


@pytest.mark.parametrize(("url", "words"), [("nowhere://b/a", "nowhere"), ("abfs://b/a", "pip")])
def test_storage_that_cannot_be_used_is_named(url, words):
    with pytest.raises(StorageError, match=words):
        storage.open_mirror(url)


def test_another_process_sees_new_changed_and_removed_files(host, bucket):
    first, other = host("first"), host("other", apart=("checkpoints",))
    first.local.mkdir()
    write_atomic(first.local / "results.json", "1")
    (first.local / "links").mkdir()
    write_atomic(first.local / "links" / "a", b"\x00\xff")
    append(first.local / "items.jsonl", "one\n")
    (first.local / "checkpoints").mkdir()
    write_atomic(first.local / "checkpoints" / "8", "state")
    (first.local / "half.partial").write_text("half")
    first.push()
    assert not list(bucket.glob("*partial*"))
    other.pull()
    assert (other.local / "links" / "a").read_bytes() == b"\x00\xff"
    assert (other.local / "items.jsonl").read_text() == "one\n"
    assert not (other.local / "checkpoints").exists()  # these are apart

    append(first.local / "items.jsonl", "two\n")
    (first.local / "links" / "a").unlink()
    sent = len(fake_storage.READY)
    first.push()
    assert [name.rpartition("/")[2] for name in fake_storage.READY[sent:]] == ["items.jsonl"]
    (other.local / "stale").write_text("of an earlier start")
    other.pull()
    names = {file.name for file in other.local.rglob("*") if file.is_file()}
    assert names == {"results.json", "items.jsonl"}
    assert (other.local / "items.jsonl").read_text() == "one\ntwo\n"


def test_a_file_that_was_changed_here_is_read_again(host):
    first, other = host("first"), host("other")
    first.local.mkdir()
    write_atomic(first.local / "a", "there")
    first.push()
    other.pull()
    (other.local / "a").write_text("here!")
    other.pull()
    assert (other.local / "a").read_text() == "there"


def test_nothing_is_newer_there_than_what_was_written_before_it(host):
    """A file that is written during an upload waits for the next one, with all that follow it."""
    mirror = host("first")
    mirror.local.mkdir()
    for name in ("items.jsonl", "results.json", "timings.json"):  # in the order of a run
        write_atomic(mirror.local / name, "1")
        time.sleep(0.01)
    upload = mirror.system.pipe_file

    def while_it_writes(path, content, **options):
        if path.endswith("items.jsonl"):
            append(mirror.local / "items.jsonl", "2")
            write_atomic(mirror.local / "results.json", "12")
        upload(path, content, **options)

    mirror.system.pipe_file = while_it_writes
    mirror.push()
    assert [name.rpartition("/")[2] for name in fake_storage.READY] == [
        "items.jsonl",
        "results.json",
        "timings.json",
    ]
    other = host("other")
    other.pull()
    assert {(other.local / n).read_text() for n in ("items.jsonl", "results.json")} == {"1"}
    mirror.system.pipe_file = upload
    mirror.push()
    other.pull()
    assert {(other.local / n).read_text() for n in ("items.jsonl", "results.json")} == {"12"}


def test_what_never_changes_is_read_once(host):
    first, other = host("first"), host("other")
    (first.local / "key").mkdir(parents=True)
    (first.local / "key" / "states").write_bytes(b"1")
    (first.local / "key2").mkdir()
    first.publish("key")
    assert other.fetch("key") and not other.fetch("key2")
    (other.local / "key" / "states").write_bytes(b"2")
    assert other.fetch("key") and (other.local / "key" / "states").read_bytes() == b"2"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage, "LEASE_S", 1.0)
    monkeypatch.setattr(storage, "RENEW_S", 0.1)
    monkeypatch.setattr(storage, "PUSH_S", 0.2)


def test_one_start_writes_at_a_time_and_leaves_nothing_behind(host, bucket, quick):
    with written(host("first")):
        with (
            pytest.raises(StorageError, match=r"mine is in use by another start .*process \d+"),
            written(host("other")),
        ):
            pass
        assert (bucket / storage.LEASE).exists()
    assert not (bucket / storage.LEASE).exists()
    with written(host("other")):
        pass


def test_the_lease_of_a_killed_start_is_replaced(host, bucket, quick):
    Lease(host("killed"))._make()
    started = time.monotonic()
    with written(host("next")):
        assert time.monotonic() - started >= 1  # it was watched, and not renewed


def test_a_start_that_lost_its_lease_uploads_nothing(host, bucket, quick):
    mirror = host("first")
    mirror.local.mkdir()
    with pytest.raises(StorageError, match="another start"), written(mirror):
        (bucket / storage.LEASE).write_text('{"token": "of another"}')
        write_atomic(mirror.local / "late", "1")
        with pytest.raises(StorageError, match="another start"):
            flush()
    assert not (bucket / "late").exists()
    assert "of another" in (bucket / storage.LEASE).read_text()  # it is not removed
    flush()  # nothing is written by this process any more


def test_starts_at_the_same_moment_are_not_both_admitted(host, bucket, quick):
    """Neither where there is no lease, nor where a killed start has left one."""
    for left in (False, True):
        if left:
            Lease(host("killed"))._make()
        admitted, refused = [], []
        leases = [Lease(host(f"{left}{i}")) for i in range(4)]

        def take(lease, admitted=admitted, refused=refused):
            try:
                lease.take()
            except StorageError:
                refused.append(lease)
                return
            admitted.append(lease)
            while len(admitted) + len(refused) < 4:
                lease.renew()
                time.sleep(0.1)

        threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(admitted) == 1 and len(refused) == 3
        admitted[0].release()
        assert list(bucket.iterdir()) == []


def test_changes_are_uploaded_during_a_step(host, bucket, quick):
    mirror = host("first")
    mirror.local.mkdir()
    with written(mirror):
        write_atomic(mirror.local / "a", "1")
        deadline = time.monotonic() + 60
        while not (bucket / "a").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (bucket / "a").read_text() == "1"
        shutil.rmtree(mirror.local)
    assert not (bucket / "a").exists()  # at the end, too
