"""Every text method on the embedded agents, from one command to its row of the report."""

import json

from quickstart_runs import refused

from rmas_jax.cli.run import main

METHODS = ("self_refinement", "mixture_of_agents", "textgrad", "majority_vote", "best_of_agents")
SETTINGS = [
    "data.train_size=8",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
    "inner.steps=0",
    "inner.warmup_steps=0",
    "outer.phases=[]",
    "system.latent_steps=2",
    "evaluation.gradient_batch_size=0",
    "evaluation.rounds=[1,2]",
    "evaluation.benchmarks=[{name: data, splits: ['test[:2]']}]",
    "evaluation.sampling.max_new_tokens=12",
    "evaluation.batch_size=2",
    f"evaluation.methods=[{', '.join(METHODS)}]",
]


def test_every_text_method_comes_to_a_row(tmp_path):
    settings = [f"output_dir={tmp_path}", *SETTINGS]
    assert main(["--config", "quickstart", *(x for s in settings for x in ("--set", s))]) == 0
    folder = tmp_path / "quickstart"
    rows = {
        (r["method"], r["rounds"]): r for r in json.loads((folder / "results.json").read_text())
    }
    assert [*rows] == [
        ("self_refinement", 1),
        ("self_refinement", 2),
        ("mixture_of_agents", 2),
        ("textgrad", 2),
        ("majority_vote", 1),
        ("best_of_agents", 1),
    ]
    assert all(row["n"] == 2 and row["tokens_per_item"] > 0 for row in rows.values())
    for method, steps in ((("self_refinement", 1), 2 * 2), (("self_refinement", 2), 5 * 2)):
        assert steps < rows[method]["steps_per_item"] == rows[method]["tokens_per_item"]
    for name in METHODS[1:]:
        row = next(row for (method, _), row in rows.items() if method == name)
        assert row["steps_per_item"] < row["tokens_per_item"]  # agents side by side
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    votes = [item for item in items if item["method"] == "majority_vote"]
    assert all([*item["agents"]] == ["planner", "critic", "solver"] for item in votes)
    report = (folder / "report.md").read_text()
    assert "self-refinement" in report and "best of the agents (oracle)" in report


def test_a_faulty_section_is_refused_before_weights_are_read(tmp_path, capsys):
    prompts = tmp_path / "mine.yaml"
    prompts.write_text(
        'planner: {first: "{question}", later: "{question} {solver}"}\n'
        'critic: {first: "{question} {planner}"}\n'
        'solver: {first: "{question} {critic}"}\n'
        'methods: {textgrad: {agents: {first: "{question}"}}}\n'
    )
    message = refused(tmp_path, capsys, f"system.prompts={prompts}")
    named = "mine.yaml: methods: textgrad: solver must have ['critic', 'planner', 'solver'], got"
    assert f"{named} '{{question}}'" in message
