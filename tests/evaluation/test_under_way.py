"""Finished rollouts of a measurement under way, on disk."""

import json

import pytest

from rmas_jax.evaluation.rows import Measurement
from rmas_jax.evaluation.under_way import Finished, open_under_way

KEY = Measurement("m", 1, "b", "test", 0)
VERSION = {"benchmark_version": "v"}


def rollout(id_, k, text="x"):
    return Finished(k, 0.5, {**KEY._asdict(), "id": id_, "text": text, "scores": {"f1": 1 / 3}})


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "under_way.jsonl"
    under_way = open_under_way(path, KEY, VERSION)
    under_way.add([rollout("a", 0), rollout(1, 0, "\u00e4\n")])
    under_way.add([rollout("a", 0, "other"), rollout("a", 1)])  # the first of them was there
    return path, under_way.finished


def test_rollouts_are_found_again(written):
    path, finished = written
    assert list(finished) == [("a", 0), (1, 0), ("a", 1)] and finished["a", 0].item["text"] == "x"
    before = path.read_bytes()
    assert open_under_way(path, KEY, VERSION).finished == finished
    assert path.read_bytes() == before


def test_of_another_measurement_or_version_nothing_counts(written):
    path, _ = written
    assert open_under_way(path, KEY, {"benchmark_version": "w"}).finished == {}
    assert open_under_way(path, KEY, VERSION).finished == {}  # that file is gone
    open_under_way(path, KEY, VERSION).add([rollout("a", 0)])
    assert open_under_way(path, KEY._replace(seed=1), VERSION).finished == {}


def test_after_any_cut_the_whole_lines_count_and_writing_goes_on(written):
    path, finished = written
    raw = path.read_bytes()
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        under_way = open_under_way(path, KEY, VERSION)
        whole = max(raw[:cut].count(b"\n") - 1, 0)
        assert list(under_way.finished) == list(finished)[:whole]
        under_way.add(list(finished.values())[whole:])
        assert open_under_way(path, KEY, VERSION).finished == finished
        assert path.read_bytes() == raw


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_damaged_line_is_written_again(written, line):
    path, finished = written
    lines = path.read_bytes().splitlines(keepends=True)
    changed = lines[line].replace(b'"seconds": 0.5', b'"seconds": 0.6')
    for damaged in (changed, b"\xff\n", b"3\n", b"[]\n", lines[line].replace(b'"id"', b'"ID"')):
        assert damaged != lines[line]
        path.write_bytes(b"".join([*lines[:line], damaged, *lines[line + 1 :]]))
        found = open_under_way(path, KEY, VERSION).finished
        assert list(found) == [key for i, key in enumerate(finished, 1) if i != line]
        assert all(json.loads(text) for text in path.read_text().splitlines())
