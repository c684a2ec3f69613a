"""The record of an evaluation on disk."""

import pytest

from rmas_jax.evaluation.record import open_record
from rmas_jax.host.errors import LISTED


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"\0\n", b"3\n", b"\xff\n"])
def test_a_thousand_damaged_lines_are_counted_not_listed(tmp_path, caplog, line):
    (tmp_path / "items.jsonl").write_bytes(line * 1000)
    assert open_record(tmp_path).rows == []
    assert len(caplog.messages) == LISTED + 1 and caplog.messages[-1] == "and 988 more"
    assert (tmp_path / "items.jsonl").read_bytes() == b""
