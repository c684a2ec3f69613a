"""What benchmarks of speed share."""

import json
import os

import numpy as np
import pytest

from experiments.benchmarks import harness, processes
from experiments.benchmarks.harness import Number


def test_contenders_run_in_turn_from_another_one_on_and_warm_up_apart(monkeypatch):
    monkeypatch.setattr(harness, "REST", 0.0)
    order = []

    def contender(name):
        def call():
            order.append(name)
            return len(order)

        return call

    contenders = {name: contender(name) for name in "abc"}
    found = harness.results_in_turn(contenders, repeats=2, warm_up=2)
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [8, 10], "b": [9, 11], "c": [7, 12]}


def test_seconds_are_those_of_each_call(monkeypatch):
    monkeypatch.setattr(harness, "REST", 0.0)
    now = [0.0]

    def takes(seconds):
        def call():
            now[0] += next(seconds)

        return call

    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    contenders = {"one": takes(iter([9, 1, 2, 4])), "other": takes(iter([9, 3, 8, 2]))}
    found = harness.in_turn(contenders, repeats=3)
    assert found == {"one": [1, 2, 4], "other": [3, 8, 2]}
    assert harness.summary(found["other"]) == (3, 2, 8)
    ratio = harness.speedup(found["other"], found["one"])
    assert ratio == (3, 0.5, 4)
    assert ratio.shown() == "3.00 (0.50 to 4.00)" and ratio.shown(0) == "3 (0 to 4)"


def test_a_short_call_is_repeated_until_the_machine_is_awake(monkeypatch):
    now, calls = [0.0], []

    def call():  # the first ones are slow
        calls.append(max(0.5, 2.0 - 0.5 * len(calls)))
        now[0] += calls[-1]

    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(harness.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(harness, "REST", 4.0)
    assert harness.in_turn({"one": call}, repeats=1, warm_up=0) == {"one": [1.0]}
    assert calls == [2.0, 1.5, 1.0]


def test_a_command_line_has_a_folder_and_numbers(tmp_path, capsys):
    numbers = {"batch": Number((1, 8), "batch sizes"), "max-tokens": Number(64, "of it", least=2)}
    parser = harness.command_line("rounds", "What it is.", numbers)
    folder = str(tmp_path)
    options = parser.parse_args(["--out", folder])
    assert harness.settings(options) == {"batch": (1, 8), "max_tokens": 64}
    options = parser.parse_args(["--out", folder, "--batch", "3", "4", "--max-tokens", "2"])
    assert harness.settings(options) == {"batch": [3, 4], "max_tokens": 2}
    assert options.out == tmp_path
    text = parser.format_help()
    assert "What it is." in text and "batch sizes (1 8)" in text and "of it (64)" in text
    for wrong, name, least in (
        (["--max-tokens", "1"], "--max-tokens", 2),
        (["--batch", "8", "0"], "--batch", 1),
        (["--batch", "x"], "--batch", 1),
        (["--batch", "-1"], "--batch", 1),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(["--out", folder, *wrong])
        assert ended.value.code == 2
        said = f"argument {name}: must be a whole number of at least {least}, got {wrong[-1]}\n"
        assert capsys.readouterr().err.endswith(said)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "--out" in capsys.readouterr().err


def test_a_report_is_a_table_and_json(tmp_path):
    lines = harness.markdown_table(("a", "b"), [("1", "2"), ("3", "4")])
    assert lines == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]
    harness.write_report(tmp_path / "new", "it", {"rows": [1.5]}, "page\n")
    assert json.loads((tmp_path / "new" / "it.json").read_text()) == {"rows": [1.5]}
    assert (tmp_path / "new" / "it.md").read_text() == "page\n"


def test_functions_run_in_processes_of_their_own():
    one, other = processes.call_together(os.getpid, [(), ()])
    assert len({one, other, os.getpid()}) == 3
    assert processes.call(os.getenv, ("LENT", "none"), {"LENT": "here"}) == "here"
    assert processes.call(os.getenv, ("LENT", "none")) == "none"


def test_memory_is_that_of_the_process_alone():
    before = processes.resident()
    held = np.ones(64 * 2**20, np.uint8)
    after = processes.resident()
    assert 63 <= (after.now - before.now) / held.nbytes * 64 < 80
    assert after.peak >= max(after.now, before.peak)
    del held
    assert processes.resident().peak > after.peak - 2**20 > processes.resident().now
    now, peak = processes.call(processes.resident, ())  # a child of a process that held more
    assert 0 < now <= peak < 64 * 2**20


def test_a_process_that_fails_is_an_error_with_what_it_said():
    assert processes.run(["-c", "print(1 + 1)"]) == "2\n"
    code = "import sys; print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"(?s)python -c .* ended with exit code 3:\nwhy"):
        processes.run(["-c", code])
