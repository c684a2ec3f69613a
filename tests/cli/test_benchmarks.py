"""`rmas benchmarks`: the list, one definition, and its questions."""

import json
import re

import pytest
import yaml
from benchmark_files import write_benchmark

from rmas_jax.cli.__main__ import main
from rmas_jax.evaluation.benchmarks import shipped
from rmas_jax.host.errors import BAD_INPUT


def test_the_list_has_every_benchmark_on_a_line(capsys):
    assert main(["benchmarks"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, benchmark in shipped().items():
        assert benchmark.data.dataset in lines[name] and benchmark.data.grader in lines[name]
    assert lines["AIME-2026"].split()[1:6] == ["30", "math", "pass@10", "16000", "0.6"]
    assert lines["MATH-500"].endswith("MIT") and lines["GPQA-Diamond"].endswith("CC BY 4.0 *")


def test_a_definition_is_printed_and_its_questions_are_loaded(tmp_path, capsys):
    assert main(["benchmarks", "GPQA-Diamond"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["items"] == {"test": 198} and tree["data"]["rule"] == "gpqa"
    assert "accept the conditions" in tree["access"]
    file = write_benchmark("GPQA-Diamond", tmp_path)
    assert main(["benchmarks", str(file), "--load"]) == 0
    out = capsys.readouterr().out
    assert "test: 3 items, checksum " in out and " as defined" not in out and "\nA. " in out
    assert out.endswith(
        ("gold answer: A\n", "gold answer: B\n", "gold answer: C\n", "gold answer: D\n")
    )


def test_a_printed_checksum_can_be_put_into_the_definition(tmp_path, capsys):
    file = write_benchmark("AIME-2025", tmp_path)
    assert main(["benchmarks", str(file), "--load"]) == 0
    checksum = re.search(r"checksum (\w+);", capsys.readouterr().out)[1]
    tree = yaml.safe_load(file.read_text())
    for stated, status in ((checksum, 0), (checksum[::-1], BAD_INPUT)):
        file.write_text(yaml.safe_dump(tree | {"checksum": {"test": stated}}))
        assert main(["benchmarks", str(file), "--load"]) == status
        captured = capsys.readouterr()
        assert (f"checksum {checksum} as defined;" in captured.out) == (status == 0)
        assert (f"must be {stated}, got {checksum}" in captured.err) == (status == BAD_INPUT)


@pytest.mark.parametrize(
    ("answers", "status", "message"),
    [
        (("B", "C"), 0, ""),
        (("B", "5"), 0, "test: gold answers must be one letter: B, (B)"),
        (("4", "5"), BAD_INPUT, "got 2 others of 2, the first "),
    ],
)
def test_gold_answers_are_checked_as_before_a_run(
    tmp_path, capsys, caplog, answers, status, message
):
    rows = [{"question": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset": "files", "files": {"test": str(tmp_path / "test.jsonl")}, "grader": "choice"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "data": data}))
    assert main(["benchmarks", str(tmp_path / "mine.yaml"), "--load"]) == status
    captured = capsys.readouterr()
    assert "test: 2 items, checksum " in captured.out
    said = captured.err + caplog.text
    assert message in said and bool(message) == ("gold answers" in said)


def test_what_is_no_benchmark_or_cannot_be_loaded_ends_in_one_message(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RMAS_DATA", raising=False)
    assert main(["benchmarks", "GPQA"]) == BAD_INPUT
    assert "NAME must be one of AIME-2025, " in capsys.readouterr().err
    assert main(["benchmarks", "MedQA", "--load"]) == BAD_INPUT
    assert "copy dataset/medqa.json" in capsys.readouterr().err
