"""Asking a team from the shell: the embedded agents, with links that are aligned only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import jax
import pytest
import yaml

from experiments.ask import build_asker, main, parser
from rmas_jax.assembly import load_team, start_links
from rmas_jax.checkpoints import save_links
from rmas_jax.config import dump_config, load_config
from rmas_jax.host.errors import BAD_INPUT

CONFIG = "experiments/configs/quickstart.yaml"
QUESTION = "After two gates, red, green and blue in turn, what has become of the phrase Amor Roma?"


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    team = load_team(load_config(CONFIG).system)
    path = tmp_path_factory.mktemp("links") / "links.safetensors"
    save_links(path, start_links(team, start="aligned", key=jax.random.key(0)))
    return str(path)


def ask(tmp_path, capsys, *arguments):
    """What is printed, and the accounts."""
    file = tmp_path / "accounts.jsonl"
    common = ["--config", CONFIG, "--set", f"output_dir={tmp_path}", "--max_tokens", "8"]
    assert main([*common, "--json", str(file), *arguments]) == 0
    return capsys.readouterr().out, [json.loads(line) for line in file.read_text().splitlines()]


def test_latents_step_by_step_and_what_they_are_near(tmp_path, capsys, links):
    arguments = ("--links", links, "--rounds", "2", "--inspect", "2", QUESTION)
    shown, (account,) = ask(tmp_path, capsys, *arguments)
    stages = [(step["round"], step["role"]) for step in account["steps"]]
    roles = ("planner", "critic", "solver")
    assert stages == [(r, role) for r in (1, 2) for role in roles]
    assert account["steps"][-1]["did"].startswith("answers: ")
    assert not any(step["compiled"] for step in account["steps"][3:-1])
    edges = [item["edge"] for item in account["crossed"] if "edge" in item]
    assert edges == ["planner->critic", "critic->solver", "solver->planner", *edges[:2]]
    assert all(len(row) == 2 for row in account["crossed"][0]["nearest"])
    assert len(account["crossed"][0]["nearest"]) == 4  # latents
    assert account["crossed"][-1]["change"] > 0
    assert QUESTION in shown and account["answers"][0] in shown
    assert "planner->critic" in shown and "4 latents, no token" in shown


def test_text_and_several_questions_from_standard_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", [f"{QUESTION}\n", "\n", f"{QUESTION}\n"])
    shown, accounts = ask(tmp_path, capsys, "--channel", "text", "--rounds", "1")
    assert accounts[0]["answers"] == accounts[1]["answers"]
    assert [item["role"] for item in accounts[0]["crossed"]] == ["planner", "critic"]
    assert accounts[0]["crossed"][0]["text"] in shown
    assert not any(step["compiled"] for step in accounts[1]["steps"])


def test_a_question_is_asked_on_the_day_of_the_run(tmp_path):
    (tmp_path / "quickstart").mkdir()
    identity = {"config": {"system": {"date": "2026-01-31"}}}
    (tmp_path / "quickstart" / "identity.json").write_text(json.dumps(identity))
    common = ["--config", CONFIG, "--channel", "text", "--set", f"output_dir={tmp_path}"]
    for options, day in (([], "2026-01-31"), (["--set", "system.date='2020-02-29'"], "2020-02-29")):
        asker = build_asker(parser().parse_args([*common, *options, "Who?"]))
        assert {t.chat_date for t in asker.team.tokenizers.values()} == {day}


def test_rollouts_share_the_latents(tmp_path, capsys, links):
    arguments = ("--links", links, "--rounds", "1", "--rollouts", "3", "--temperature", "3")
    _, (account,) = ask(tmp_path, capsys, *arguments, QUESTION)
    assert len(account["answers"]) == 3 and len(set(account["answers"])) > 1
    roles = [step["role"] for step in account["steps"]]
    assert roles == ["planner", "critic", "solver", "solver", "solver"]


def test_links_of_a_run_are_those_of_its_system(tmp_path, capsys, links):
    run = tmp_path / "quickstart"
    run.joinpath("links").mkdir(parents=True)
    shutil.copy(links, run / "links" / "trained.safetensors")
    system = yaml.safe_load(dump_config(load_config(CONFIG)))["system"]
    (run / "identity.json").write_text(json.dumps({"config": {"system": system}}))
    one = ("--rounds", "1", QUESTION)
    ask(tmp_path, capsys, *one)
    _, (own, named) = ask(tmp_path, capsys, "--links", links, *one)
    assert own["answers"] == named["answers"]
    common = ["--config", CONFIG, "--set", f"output_dir={tmp_path}", "--set"]
    for other in ("system.outer_link=linear_res", "system.links=elsewhere.safetensors"):
        assert main([*common, other, *one]) == BAD_INPUT
        message = capsys.readouterr().err
        assert "belongs to another system" in message and other.partition("=")[0] in message


@pytest.mark.parametrize("script", ["ask", "make_role_texts", "run"])
def test_commands_run_as_files(script):
    command = [sys.executable, f"experiments/{script}.py", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "--config FILE" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", "0"), "--rounds 0: allowed is at least 1"),
        (("--links", "nowhere.safetensors"), "nowhere.safetensors"),
        ((), "no links"),
        (("--channel", "text", "--rollouts", "2"), "greedy answers are alike"),
        (("--search", "a", "--tavily"), "choose one"),
        (("--search", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, arguments, message):
    common = ["--config", CONFIG, "--set", f"output_dir={tmp_path}"]
    assert main([*common, *arguments, QUESTION]) == 2
    assert message in capsys.readouterr().err
