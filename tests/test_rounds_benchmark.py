"""The benchmark of rounds at a tiny size: both sides agree, and its report is complete."""

from __future__ import annotations

import json
import re

import pytest

from experiments.benchmarks import rounds


def test_both_sides_agree_and_every_part_has_its_rows(tmp_path, capsys):
    arguments = ["--shape", "tiny", "--repeats", "1", "--batch", "2", "--tokens", "3"]
    parts = ["--parts", "steps", "answer", "rounds", "--roles", "solver", "--unrolled"]
    assert rounds.main([*arguments, *parts, "--out", str(tmp_path)]) == 0
    gaps = re.findall(
        r"of (\w+): relative differences to torch ([\d.e+-]+)", capsys.readouterr().err
    )
    assert [name for name, _ in gaps] == ["torch", "scanned", "unrolled"] * 2
    assert max(float(gap) for _, gap in gaps) < 1e-5
    report = json.loads((tmp_path / "rounds.json").read_text())
    parts = [(row["part"], row["contender"]) for row in report["rows"]]
    assert parts == [
        (part, contender)
        for part in ("steps of the solver", "answer", "rounds")
        for contender in ("torch", "scanned", "unrolled")
    ]
    assert report["setting"]["bandwidth"] > 0
    assert all(row["floor_s"] > 0 and row["flops"] > 0 for row in report["rows"])
    assert "| rounds | 2 | unrolled |" in (tmp_path / "rounds.md").read_text()


@pytest.mark.parametrize("wrong", [["--tokens", "1"], ["--repeats", "0"], ["--batch", "0"]])
def test_numbers_out_of_range_are_one_message(tmp_path, capsys, wrong):
    assert rounds.main([*wrong, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --tokens must be at least 2")
