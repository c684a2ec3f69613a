"""Gold answers that no answer can equal are reported before agents are loaded."""

import argparse
import json

import pytest

from rmas_jax.cli import role_texts, run
from rmas_jax.data import Example
from rmas_jax.evaluation.graders import GRADERS
from rmas_jax.host.errors import BAD_INPUT

CONFIG = "quickstart"
MESSAGE = "gold answers must be one letter: B, (B), B: Paris, "


@pytest.fixture
def questions(tmp_path):
    """Options by their numbers: from 0, or from 1?"""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Which is {i}?", "answer": i % 4} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_before_a_run(tmp_path, questions, capsys, monkeypatch):
    monkeypatch.setattr("rmas_jax.runs.resolve.load_run_team", None)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"question": "Which {name}?", "answer": "B"}}\n')
    files = f"train: {tmp_path}/train.jsonl, validation: {tmp_path}/dev.jsonl, test: {questions}"
    files = f"data.files={{{files}}}"
    changes = (
        "data.dataset=files",
        files,
        "data.grader=choice",
        "evaluation.benchmarks=[{name: data, splits: [test]}]",
    )
    changes += (f"output_dir={tmp_path / 'runs'}", "outer.phases=[]", "name=letters")
    sets = [part for change in changes for part in ("--set", change)]
    assert run.main(["--config", CONFIG, *sets]) == BAD_INPUT
    message = capsys.readouterr().err
    assert f"test: {MESSAGE}" in message and "got 10 others of 10, the first '" in message
    assert not (tmp_path / "runs" / "letters").exists()


def test_before_texts_are_made(tmp_path, questions, capsys, monkeypatch):
    monkeypatch.setattr(role_texts, "load_run_team", None)
    out = tmp_path / "out.jsonl"
    arguments = ["--config", CONFIG, "--questions", str(questions), "--out", str(out)]
    assert role_texts.main([*arguments, "--set", "data.grader=choice"]) == BAD_INPUT
    message = capsys.readouterr().err
    assert f"{questions}: {MESSAGE}" in message and "'0' in the row 'questions.jsonl:1'" in message
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("opening", "said", "is_kept"),
    [
        ("", r"so \boxed{\text{(B)}}", True),
        ("", r"<think>\boxed{B}", False),
        ("<think>", r"\boxed{B}", False),
        ("<think>", r"\boxed{A}</think>\boxed{B. Paris}", True),
    ],
)
def test_role_texts_are_kept_by_the_letter_behind_the_thinking(opening, said, is_kept):
    item = Example("0", "Which?", "B")
    attempt = role_texts.Attempt({"planner": ["plan"], "solver": [said]}, opening, 5)
    options = argparse.Namespace(max_tokens=9, accept="right")
    arguments = (item, attempt, ("planner", "solver"), GRADERS["choice"], options)
    if is_kept:
        assert role_texts.judged(*arguments)["draft"] == [said]
    else:
        with pytest.raises(ValueError, match="answered"):
            role_texts.judged(*arguments)
