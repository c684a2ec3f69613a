"""Training curves: what a resumed run keeps, and TensorBoard beside them."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest

from rmas_jax.config import ConfigError
from rmas_jax.training.curves import Curves, as_values, open_curves


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_drops_what_it_writes_again(tmp_path):
    curves = Curves(tmp_path / "metrics.jsonl")
    for step in range(4):
        curves.write("outer", "a", step, loss=1.0)
        curves.write("outer", "b", step, loss=2.0)
    with curves.path.open("a") as file:
        file.write('{"loop": "outer", "ser')  # the process died while it wrote
    curves.truncate("a", 2)
    assert [row["step"] for row in rows(curves.path) if row["series"] == "a"] == [0, 1]
    assert [row["step"] for row in rows(curves.path) if row["series"] == "b"] == [0, 1, 2, 3]
    curves.write("outer", "a", 2, loss=1.0)
    assert len(rows(curves.path)) == 7


def test_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog):
    curves = Curves(tmp_path / "metrics.jsonl")
    for step in range(5):
        curves.write("outer", "a", step, loss=1.0)
    lines = curves.path.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b"1.0", b"1.1")
    lines[2] = b'{"loop": "outer", "ser\n'
    lines[3] = b"\xff[]\n"
    curves.path.write_bytes(b"".join(lines) + b"\0\0")
    curves.truncate("a", 4)
    assert [row["step"] for row in rows(curves.path)] == [1]
    for number in (1, 3, 4):
        assert f"{curves.path}, line {number}: " in caplog.text


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    curves = open_curves(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "tensorboard")
    curves.write("outer", "phase", 3, loss=1.5, right=[0.0, 0.5])
    curves.board.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, written = file.read_bytes(), {}
    while data:  # records: length [8], its checksum [4], an event, its checksum [4]
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        written |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert written == {
        "phase/loss": (3, 1.5),
        "phase/right/1": (3, 0.0),
        "phase/right/2": (3, 0.5),
    }


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'rmas_jax\[logging\]'"):
        open_curves(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "tensorboard")


def test_small_gradients_are_logged_and_what_is_not_finite_is_null():
    metrics = {
        "edge_grad_norm": {"a->b": np.array([3e-7, 2.4e-6, np.inf, np.nan], np.float32)},
        "loss": np.float32(1234.5678),
        "host_bytes": 2**33,
    }
    assert as_values(metrics) == {
        "edge_grad_norm/a->b": [3e-7, 2.4e-6, None, None],
        "loss": 1234.57,
        "host_bytes": 2**33,
    }
