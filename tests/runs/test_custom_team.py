"""A team of one's own, from files alone: topology, prompts, and data with texts for some roles."""

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from teams import build_team

from rmas_jax.cli.run import main
from rmas_jax.data import Example
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.topology import load_topology
from rmas_jax.training.data.encoding import encode_dialogues, encode_examples

ROOT = Path(__file__).parents[2]
EXAMPLE = Path("experiments/configs/custom_team")
TINY = [
    "system.latent_steps=2",
    "data.train_size=16",
    "inner.items=8",
    "inner.steps=4",
    "inner.repeats=2",
    "inner.warmup_steps=1",
    "outer.validation_size=4",
    "outer.phases.0.steps=2",
    "outer.phases.0.batch_size=2",
    "outer.phases.0.warmup_steps=1",
    "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]",
    "evaluation.rounds=[2]",
    "evaluation.methods=[recursive_mas]",
    "evaluation.batch_size=4",
    "evaluation.sampling.max_new_tokens=4",
    "evaluation.gradient_batch_size=0",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Function that runs the shipped example on a copy of its questions, with two bad rows."""
    monkeypatch.chdir(ROOT)
    questions = tmp_path / "questions.jsonl"
    lines = (EXAMPLE / "questions.jsonl").read_text().splitlines()
    bad = [json.dumps(json.loads(lines[0]) | {"plan": ""}), "{cut off"]
    questions.write_text("\n".join([*bad, *lines]) + "\n")

    def start(*overrides):
        settings = [f"output_dir={tmp_path / 'runs'}", f"data.dataset={questions}", *TINY]
        arguments = [part for item in (*settings, *overrides) for part in ("--set", item)]
        return main(["--config", str(EXAMPLE / "run.yaml"), *arguments])

    return start


@pytest.mark.slow
def test_four_agents_train_and_answer_from_files_alone(run, tmp_path, caplog):
    assert run() == 0
    folder = tmp_path / "runs" / "custom-team"
    topology = load_topology(EXAMPLE / "topology.yaml")
    aligned, trained = (
        load_file(folder / "links" / f"{name}.safetensors") for name in ("aligned", "trained")
    )
    for part in (*topology.order, *(f"{a}->{b}" for a, b in topology.edges)):
        assert any(part in name for name in aligned), part
    # Trained through all rounds: also the links of the role that has no texts.
    moved = {name for name in aligned if (aligned[name] != trained[name]).any()}
    assert any("right->closer" in name for name in moved)
    assert any("opener->right" in name for name in moved)

    curves = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"right", "right->closer", "on_policy"} <= {row["series"] for row in curves}
    texts = {key for row in curves for key in row if key.startswith("text_loss/")}
    assert texts == {f"text_loss/{role}" for role in ("opener", "left", "closer")}
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert len(items) == 4 and all(item["text"] and item["gold"] for item in items)

    bad = [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in bad] == [
        ("questions.jsonl", 1),
        ("questions.jsonl", 2),
    ]
    assert "2 bad rows left out" in caplog.text and "no texts of right" in caplog.text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("outer.phases.0.latents=teacher_forced", ["on_policy is teacher_forced", "none of right"]),
        ("data.columns.right=better_plan", ["right", "better_plan", "refined_plan"]),
        (
            "data.columns.judge=plan",
            ["data.columns must be among", "opener, left, right, closer, got judge"],
        ),
        (
            "data.dataset=nowhere.jsonl",
            ["data.dataset must be", "got '/", "/nowhere.jsonl'", "Sequential-Math"],
        ),
        (
            "evaluation.benchmarks=[{name: data, splits: [tset]}]",
            ["evaluation.benchmarks", "splits", "'tset'", "'validation'"],
        ),
        ("data.files={train: a.jsonl}", ["data.files", "dataset: files"]),
        ("data.test_share=0.9", ["data.test_share", "must be below 1 - validation_share"]),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_made(
    run, tmp_path, capsys, override, words
):
    assert run(override) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and all(word in message for word in words)
    assert not (tmp_path / "runs" / "custom-team").exists()


def test_slots_of_senders_without_texts_stay_empty(tmp_path):
    team, _ = build_team(tmp_path)
    texts = {"planner": ("w to a",), "solver": ("parcel",)}
    example = Example("0", "from a to b", "parcel", texts=texts)
    data = encode_examples(team, [example])
    assert set(data.prompts) == {"planner", "critic", "solver"} and set(data.texts) == set(texts)

    def read(role, texts):
        member, topology = team.members[role], team.system.topology
        dialogues = encode_dialogues(
            [dataclasses.replace(example, texts=texts)], member, topology=topology, rounds=1
        )
        return member.tokenizer.decode(dialogues.tokens[0])

    assert "w to a" in read("critic", texts)  # what the planner wrote
    solver = read("solver", texts)
    assert "w to a" not in solver and solver.count("parcel") == 1  # what it should write itself
    assert read("solver", texts | {"critic": ("w to a",)}).count("w to a") == 1
