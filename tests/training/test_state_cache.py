"""States on disk: found again, never trusted when damaged, and never more than allowed."""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import signal
import threading

import flat
import jax
import ml_dtypes
import numpy as np
import pytest

from rmas_jax.config import ConfigError
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.prompts import TokenRows
from rmas_jax.training.states import cache as state_cache
from rmas_jax.training.states.cache import GIBIBYTE, OVERHEAD, StateCache, check_room

ROWS, WIDTH = 10, 1024
AGENTS = {"planner": "digest a", "critic": "digest b", "solver": "digest b"}


def dialogues_of(seed=0):
    ids = np.random.default_rng(seed).integers(0, 99, (4, 6)).astype(np.int32)
    return flat.dialogues_of(ids, np.ones((4, 6), bool), np.ones((4, 6), bool))


def make(dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(dtype)


class Reader:
    """Asks for states, and counts how often they had to be read."""

    def __init__(self, folder, *, limit=2**20, agents=AGENTS):
        self.cache = StateCache(folder, limit_gib=limit / GIBIBYTE, agents=agents)
        self.reads = 0

    def __call__(self, role="planner", *, dialogues=None, dtype=np.float32, seed=0, fails=False):
        rows = make(dtype, seed)

        def chunks():
            self.reads += 1
            for numbers in np.array_split(np.arange(ROWS)[::-1], 3):  # not in order
                yield numbers, rows[numbers]
            if fails:
                raise KeyboardInterrupt

        like = jax.ShapeDtypeStruct(rows.shape, rows.dtype)
        found = self.cache.states(role, dialogues or dialogues_of(), like, chunks())
        assert found.dtype == rows.dtype and found.shape == rows.shape
        return found


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def entries(folder):
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_states_are_found_again_bit_for_bit(tmp_path, dtype):
    for _ in range(2):
        reader = Reader(tmp_path)
        np.testing.assert_array_equal(reader(dtype=dtype), make(dtype))
        again = reader(dtype=dtype)
        np.testing.assert_array_equal(again, make(dtype))
        assert not again.flags.writeable
    assert reader.reads == 0
    (entry,) = entries(tmp_path)
    assert files(tmp_path) == [f"{entry.name}/{n}" for n in ("entry.json", "states.npy")] + ["lock"]


def test_another_agent_dtype_or_text_is_another_entry(tmp_path):
    reader = Reader(tmp_path)
    reader()
    reader("critic")
    reader("solver")  # the same agent with the same texts
    assert reader.reads == 2
    reader(dtype=np.float16)
    assert reader.reads == 3
    texts = dialogues_of()
    ids, starts = texts.tokens.ids.copy(), texts.tokens.starts.copy()
    ids[15] += 1
    starts[2] += 1  # the same tokens in other rows
    for other in (
        {"tokens": TokenRows(ids, texts.tokens.starts)},
        {"tokens": TokenRows(texts.tokens.ids, starts)},
        {"text_lengths": texts.text_lengths - (np.arange(4) == 2)},
    ):
        reader(dialogues=dataclasses.replace(texts, **other))
    assert reader.reads == 6
    retrained = Reader(tmp_path, agents={"planner": "digest c"})
    retrained()
    assert retrained.reads == 1
    assert len(entries(tmp_path)) == 7


def test_what_was_not_used_for_longest_makes_way(tmp_path):
    size = make().nbytes + OVERHEAD
    for seed in (0, 1, 0, 2):  # 1 is older than 0 when 2 comes
        Reader(tmp_path, limit=2 * size)(dialogues=dialogues_of(seed), seed=seed)
        held = sum((tmp_path / file).stat().st_size for file in files(tmp_path))
        assert held <= 2 * size
    reads = []
    for seed in (0, 2, 1):
        reader = Reader(tmp_path, limit=2 * size)
        np.testing.assert_array_equal(
            reader(dialogues=dialogues_of(seed), seed=seed), make(seed=seed)
        )
        reads.append(reader.reads)
    assert reads == [0, 0, 1]


def test_what_has_no_room_is_kept_in_memory_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    size = make().nbytes + OVERHEAD
    Reader(tmp_path, limit=size)()
    reader = Reader(tmp_path, limit=size - 1)
    np.testing.assert_array_equal(reader("critic", seed=3), make(seed=3))
    assert "states of critic are kept in memory: they take 0.00 GiB" in caplog.text
    assert len(entries(tmp_path)) == 1  # nothing made way for nothing
    # What a run uses does not make way for what it needs next.
    reader = Reader(tmp_path, limit=size)
    first = reader()
    reader("critic", seed=3)
    assert reader.reads == 1 and len(entries(tmp_path)) == 1
    np.testing.assert_array_equal(first, make())


def test_a_damaged_entry_is_reported_and_read_again(tmp_path, caplog):
    Reader(tmp_path)()
    (entry,) = entries(tmp_path)
    good = {name: (entry / name).read_bytes() for name in ("states.npy", "entry.json")}
    flipped = bytearray(good["states.npy"])
    flipped[3000] ^= 1
    damages = [
        ("states.npy", bytes(flipped), "checksum"),
        ("states.npy", good["states.npy"][:3000], ""),
        ("states.npy", b"", ""),
        ("entry.json", b"{", ""),
        ("entry.json", b"{}", ""),
    ]
    for name, content, words in damages:
        (entry / name).write_bytes(content)
        caplog.clear()
        reader = Reader(tmp_path)
        np.testing.assert_array_equal(reader(), make())
        assert reader.reads == 1
        assert f"states in {entry} are damaged and read again: " in caplog.text
        assert words in caplog.text
        assert {name: (entry / name).read_bytes() for name in good} == good
    (entry / "entry.json").unlink()
    reader = Reader(tmp_path)
    reader()
    assert reader.reads == 1


@pytest.mark.parametrize("name", ["states.npy", "entry.json", "lock"])
def test_a_pipe_where_a_file_should_be_is_not_waited_for(tmp_path, caplog, name):
    Reader(tmp_path)()
    (entry,) = entries(tmp_path)
    pipe = (tmp_path if name == "lock" else entry) / name
    pipe.unlink()
    os.mkfifo(pipe)
    reader = Reader(tmp_path)
    np.testing.assert_array_equal(reader(), make())
    assert reader.reads == 1
    assert f"{pipe}: must be a regular file, got a pipe" in caplog.text
    assert not pipe.is_fifo() or name == "lock"


def test_what_breaks_off_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Reader(tmp_path)(fails=True)
    assert files(tmp_path) == ["lock"]
    # A killed run cannot clean up after itself: the next one does.
    (tmp_path / state_cache.PARTIAL).mkdir()
    (tmp_path / state_cache.PARTIAL / "states.npy").write_bytes(b"half")
    reader = Reader(tmp_path)
    np.testing.assert_array_equal(reader(), make())
    assert reader.reads == 1
    assert len(entries(tmp_path)) == 1


def test_a_run_waits_while_another_one_reads(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(state_cache, "WAIT_S", 0.01)
    reader, found = Reader(tmp_path), []
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: found.append(reader()))
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive() and reader.reads == 0
        assert caplog.text.count("waits for another run") == 1
    waiting.join()
    np.testing.assert_array_equal(found[0], make())


def test_states_beyond_the_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    size = make().nbytes
    monkeypatch.setattr(state_cache, "physical_memory", lambda: 2 * size)
    sizes = {"planner": size, "critic": size, "solver": size}
    with pytest.raises(
        ConfigError, match=r"planner: 0.00 GiB, .* solver: .*inner.items.*cache_gib"
    ):
        check_room(sizes)
    check_room({"planner": size, "critic": size})
    check_room(sizes, size + OVERHEAD)  # one of them lies on the disk
    reader = Reader(tmp_path, limit=0)
    monkeypatch.setattr(state_cache, "physical_memory", lambda: 2 * size + OVERHEAD)
    reader()
    with pytest.raises(ConfigError, match=r"planner: .*, critic: "):
        reader("critic")
    assert reader.reads == 1


def test_what_was_found_is_opened_before_another_run_can_remove_it(tmp_path, monkeypatch):
    size = make().nbytes + OVERHEAD
    Reader(tmp_path)()
    original = state_cache.on_all

    def after_another_run(call):
        monkeypatch.setattr(state_cache, "on_all", original)
        other = Reader(tmp_path, limit=size)
        with sigterm_noted():
            signal.raise_signal(signal.SIGTERM)  # ends its waiting, as it would wait for this one
            with pytest.raises(PreemptedError, match="while another run read texts"):
                other(dialogues=dialogues_of(1), seed=1)
        return call()

    monkeypatch.setattr(state_cache, "on_all", after_another_run)
    found = Reader(tmp_path, limit=size)()
    Reader(tmp_path, limit=size)(dialogues=dialogues_of(1), seed=1)  # makes way for this
    np.testing.assert_array_equal(found, make())


def test_a_run_that_waits_can_be_ended(tmp_path):
    reader = Reader(tmp_path)
    with (tmp_path / "lock").open("w") as lock, sigterm_noted():
        fcntl.flock(lock, fcntl.LOCK_EX)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(PreemptedError, match="while another run read texts"):
            reader()
    assert reader.reads == 0


def test_a_folder_that_cannot_be_written_keeps_states_in_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    np.testing.assert_array_equal(Reader(tmp_path / "file" / "states")(), make())
    assert "states of planner are kept in memory: [Errno" in caplog.text


def test_a_full_disk_keeps_states_in_memory(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_cache.os, "posix_fallocate", full)
    np.testing.assert_array_equal(Reader(tmp_path)(), make())
    assert "kept in memory: [Errno 28] No space left" in caplog.text
    assert files(tmp_path) == ["lock"]
