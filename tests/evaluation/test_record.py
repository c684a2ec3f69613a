"""The record of an evaluation on disk."""

import json

import pytest

from rmas_jax.evaluation.record import open_record
from rmas_jax.evaluation.rows import Measurement
from rmas_jax.host.errors import LISTED


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"\0\n", b"3\n", b"\xff\n"])
def test_a_thousand_damaged_lines_are_counted_not_listed(tmp_path, caplog, line):
    (tmp_path / "items.jsonl").write_bytes(line * 1000)
    assert open_record(tmp_path).rows == []
    assert len(caplog.messages) == LISTED + 1 and caplog.messages[-1] == "and 988 more"
    assert (tmp_path / "items.jsonl").read_bytes() == b""


def test_a_result_whose_items_are_lost_does_not_count(tmp_path):
    key = {"method": "m", "rounds": 1, "benchmark": "b", "split": "test", "seed": 0}
    record = open_record(tmp_path)
    record.finish(key | {"n": 1}, [key | {"id": 1}])
    assert open_record(tmp_path).has(Measurement("m", 1, "b", "test", 0))
    (tmp_path / "items.jsonl").unlink()
    assert not open_record(tmp_path).has(Measurement("m", 1, "b", "test", 0))
    assert json.loads((tmp_path / "results.json").read_text()) == []
