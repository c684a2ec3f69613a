"""A whole run in which each role is given evidence of its own, from a column of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmas_jax.cli import ask
from rmas_jax.cli.run import main
from rmas_jax.host.errors import BAD_INPUT

PROMPTS = """
planner:
  first: "{question}\\nYou know: {evidence_planner}\\nGo."
  later: "{question}\\nYou know: {evidence_planner}\\nSeen: {solver}\\nGo on."
critic: {first: "{question}\\nPlan: {planner}"}
solver: {first: "{question}\\nYou know: {evidence_solver}\\nRefined: {critic}"}
"""
CONFIG = """
name: columns
system:
  prompts: prompts.yaml
  agents: {planner: embedded/planner, critic: embedded/critic, solver: embedded/solver}
  latent_steps: 2
  rounds: 2
data: {dataset: files, files: {train: train.jsonl, validation: held.jsonl, test: test.jsonl}}
inner: {steps: 2, batch_size: 16, learning_rate: 6e-3, warmup_steps: 0, items: 8}
outer:
  validation_size: 4
  phases:
    - name: on_policy
      latents: on_policy
      rounds: 2
      steps: 1
      batch_size: 2
      learning_rate: 2e-4
      warmup_steps: 0
evaluation:
  benchmarks: [{name: data, splits: [test]}]
  rounds: [2]
  methods: [recursive_mas]
  batch_size: 4
  sampling: {max_new_tokens: 4}
  gradient_batch_size: 0
runtime: {progress: false, compilation_cache: false}
"""


def rows(first, count):
    return [
        {
            "id": f"q{i}",
            "question": f"Which phrase is number {i}?",
            "answer": f"Amor {i}",
            "evidence_planner": f"Kenal {i}",
            "evidence_solver": f"Bison {i}",
        }
        for i in range(first, first + count)
    ]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, train=rows(0, 8), held=rows(12, 4), test=rows(8, 4))
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def write(folder: Path, **splits):
    for split, lines in splits.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)


def run(folder, *overrides):
    settings = (f"output_dir={folder / 'runs'}", *overrides)
    arguments = [part for item in settings for part in ("--set", item)]
    return main(["--config", str(folder / "run.yaml"), *arguments])


def hashes(folder, name="columns"):
    """Item -> the hash of what its answerer reads."""
    lines = (folder / "runs" / name / "items.jsonl").read_text().splitlines()
    return {item["id"]: item["prompt_hash"] for item in map(json.loads, lines)}


@pytest.mark.slow
def test_a_run_trains_and_answers_with_evidence_for_each_role(folder, capsys):
    assert run(folder) == 0
    before = hashes(folder)
    assert len(set(before.values())) == 4
    # Another text for the solver changes what it reads, in this row alone.
    other = rows(8, 4)
    other[1]["evidence_solver"] = "Amor"
    write(folder, test=other)
    assert run(folder, "name=other") == 0
    after = hashes(folder, "other")
    assert [id_ for id_ in before if before[id_] != after[id_]] == ["q9"]

    common = ["--config", str(folder / "run.yaml"), "--set", f"output_dir={folder / 'runs'}"]
    given = ["--column", "evidence_planner=Kenal", "--column", "evidence_solver=Bison"]
    file = folder / "accounts.jsonl"
    options = ["--max-tokens", "4", "--json", str(file)]
    assert ask.main([*common, *given, *options, "Which phrase?"]) == 0
    account = json.loads(file.read_text())
    assert account["columns"] == {"evidence_planner": "Kenal", "evidence_solver": "Bison"}
    assert len(account["answers"]) == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_without_a_column_is_named_before_anything_is_made(folder, capsys, split):
    lines = {"train": rows(0, 8), "test": rows(8, 4)}[split]
    del lines[2]["evidence_solver"]
    write(folder, **{split: lines})
    assert run(folder) == BAD_INPUT
    message = capsys.readouterr().err
    for words in ("prompts.yaml: solver: first", "{evidence_solver}", f"row {lines[2]['id']}"):
        assert words in message
    assert not (folder / "runs" / "columns").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["evaluation.methods=[mixture_of_agents]"],
            "the prompt of planner in mixture_of_agents must have {evidence_planner}",
        ),
        (
            ["data.columns={answer: evidence_solver}"],
            "prompts must not have the column of gold answers, got {evidence_solver}",
        ),
    ],
)
def test_what_would_make_a_measurement_unfair_is_refused(folder, capsys, overrides, words):
    assert run(folder, *overrides) == BAD_INPUT
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["evidence_planner=x"], "--column evidence_solver=TEXT must be given, as the prompt of"),
        (["evidence=x"], "(evidence_planner, evidence_solver), got 'evidence=x'"),
        (["evidence_planner"], "--column must be NAME=TEXT"),
        (["evidence_planner=x", "evidence_planner=y"], "once for each column"),
        (["evidence_planner= "], "--column evidence_planner must not be empty"),
    ],
)
def test_columns_of_a_question_are_those_of_the_prompts(folder, capsys, given, words):
    arguments = [part for item in given for part in ("--column", item)]
    common = ["--config", str(folder / "run.yaml"), "--set", f"output_dir={folder / 'runs'}"]
    assert ask.main([*common, *arguments, "Which phrase?"]) == BAD_INPUT
    assert words in capsys.readouterr().err
