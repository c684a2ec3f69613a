"""Asking a team from the shell: the embedded agents, with links that are aligned only."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading

import jax
import pytest
import yaml

from rmas_jax.cli.ask import build_answerer, main, parser
from rmas_jax.config import dump_config, load_config
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.interop.link_files import save_links
from rmas_jax.team import load_team, start_links

CONFIG = "quickstart"
QUESTION = "After two gates, red, green and blue in turn, what has become of the phrase Amor Roma?"


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    team = load_team(load_config(CONFIG).system)
    path = tmp_path_factory.mktemp("links") / "links.safetensors"
    save_links(path, start_links(team, start="aligned", key=jax.random.key(0)))
    return str(path)


def standard_input(monkeypatch, raw):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))


def ask(tmp_path, capsys, *arguments):
    """What is printed, and the accounts."""
    file = tmp_path / "accounts.jsonl"
    common = ["--config", CONFIG, "--set", f"output_dir={tmp_path}", "--max-tokens", "8"]
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
    # A thread in the middle of a program would abort the process as it ends.
    assert "engine" not in [thread.name for thread in threading.enumerate()]


def test_text_and_several_questions_from_standard_input(tmp_path, capsys, monkeypatch):
    standard_input(monkeypatch, f"{QUESTION}\n\n{QUESTION}\n".encode())
    shown, accounts = ask(tmp_path, capsys, "--channel", "text", "--rounds", "1")
    assert accounts[0]["answers"] == accounts[1]["answers"]
    assert [item["role"] for item in accounts[0]["crossed"]] == ["planner", "critic"]
    assert accounts[0]["crossed"][0]["text"] in shown
    assert not any(step["compiled"] for step in accounts[1]["steps"])


def test_a_channel_without_links(tmp_path, capsys):
    _, (account,) = ask(tmp_path, capsys, "--channel", "softmax", "--rounds", "1", QUESTION)
    assert [item["edge"] for item in account["crossed"]] == ["planner->critic", "critic->solver"]
    assert len(account["answers"]) == 1


def test_a_question_is_asked_on_the_day_of_the_run(tmp_path):
    (tmp_path / "quickstart").mkdir()
    identity = {"config": {"system": {"date": "2026-01-31"}}}
    (tmp_path / "quickstart" / "identity.json").write_text(json.dumps(identity))
    common = ["--config", CONFIG, "--channel", "text", "--set", f"output_dir={tmp_path}"]
    for options, day in (([], "2026-01-31"), (["--set", "system.date='2020-02-29'"], "2020-02-29")):
        answerer, _ = build_answerer(parser().parse_args([*common, *options, "Who?"]))
        assert {member.tokenizer.chat_date for member in answerer.team.members.values()} == {day}


def test_rollouts_share_the_latents(tmp_path, capsys, links):
    arguments = ("--links", links, "--rounds", "1", "--rollouts", "3", "--temperature", "3")
    _, (account,) = ask(tmp_path, capsys, *arguments, QUESTION)
    assert len(account["answers"]) == 3 and len(set(account["answers"])) > 1
    roles = [step["role"] for step in account["steps"]]
    assert roles == ["planner", "critic", "solver"]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", "0"), "--rounds must be at least 1 and at most 16, got 0"),
        (("--latent-steps", "1000000000"), "--latent-steps must be at least 0 and at most 16,384"),
        (("--max-tokens", "1000000000000"), "--max-tokens must be at least 1 and at most 131,072"),
        (("--rollouts", "1000000000"), "--rollouts must be at least 1 and at most 10,000"),
        (("--inspect", "-1"), "--inspect must be at least 0 and at most 1,000, got -1"),
        (("--tolerance", "nan"), "--tolerance must be at least 0.0 and at most"),
        (("--seed", "-1"), "--seed must be at least 0 and at most 4,294,967,295, got -1"),
        (("--json", "."), "--json .: must be a regular file, got a folder"),
        (("--json", "missing/x.jsonl"), "--json missing/x.jsonl: must be in an existing folder"),
        (("--json", "/dev/null"), "--json /dev/null: must be a regular file, got a device"),
        (("--json", "n" * 300), "cannot be written (File name too long)"),
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


@pytest.fixture
def answered(monkeypatch):
    """What is asked, without a team: the list of questions."""
    asked = []

    def echo(answerer, question, **how):
        asked.append(question)
        return {"question": question, "answers": [], "steps": [], "crossed": []}

    monkeypatch.setattr("rmas_jax.cli.ask.build_answerer", lambda options: (None, {}))
    monkeypatch.setattr("rmas_jax.cli.ask.ask", echo)
    return asked


BAD_LINES = [
    (b"caf\xe9", "must be text in UTF-8, got invalid continuation byte at byte 3"),
    (b"a\xffb", "must be text in UTF-8, got invalid start byte at byte 1"),
    (b"\xed\xa0\x80", "must be text in UTF-8, got invalid continuation byte"),  # half of a pair
    (b"a\0b", "must be text, got a NUL in 'a\\x00b'"),
    (b"\xef\xbb\xbf", "must be a question, got '\\ufeff'"),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES)
def test_a_line_that_is_no_question_is_refused_by_itself(
    answered, capsys, monkeypatch, line, words
):
    standard_input(monkeypatch, b"one\n" + line + b"\n\ntwo\n")
    assert main(["--config", CONFIG]) == BAD_INPUT
    assert answered == ["one", "two"]
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: line 2 of standard input ") and words in message


@pytest.mark.parametrize(
    ("raw", "questions"),
    [
        (b"\xef\xbb\xbfone\r\ntwo", ["one", "two"]),
        ("one\u2028more\x85\x0cend\ntwo\n".encode(), ["one\u2028more\x85\x0cend", "two"]),
        ("  ü 数 \n".encode(), ["ü 数"]),
    ],
)
def test_lines_end_at_line_feeds_and_a_byte_order_mark_is_no_part(
    answered, monkeypatch, raw, questions
):
    standard_input(monkeypatch, raw)
    assert main(["--config", CONFIG]) == 0
    assert answered == questions


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "standard input must hold a question per line, got none"),
        (b"\n  \n", "standard input must hold a question per line, got none"),
        ("one\ntwo\n".encode("utf-16"), "standard input must be text in UTF-8, got UTF-16"),
        (b"x" * (2**20 + 1), "line 1 of standard input must be at most 1 MiB, got more"),
    ],
)
def test_standard_input_that_holds_no_questions(answered, capsys, monkeypatch, raw, words):
    standard_input(monkeypatch, raw)
    assert main(["--config", CONFIG]) == BAD_INPUT
    assert words in capsys.readouterr().err and not answered


def test_closed_and_unreadable_standard_input(answered, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["--config", CONFIG]) == BAD_INPUT
    assert "standard input must hold questions, is closed" in capsys.readouterr().err


def test_many_refusals_are_counted(answered, capsys, monkeypatch):
    standard_input(monkeypatch, b"\xff" * 50 + b"\n" + (b"\xff" * 50 + b"\n") * 5000 + b"two")
    assert main(["--config", CONFIG]) == BAD_INPUT
    message = capsys.readouterr().err
    assert answered == ["two"] and len(message) < 2000
    assert message.endswith("error: 5001 questions were refused, the first are named above\n")


def test_questions_of_the_command_line_are_refused_by_themselves(answered, capsys):
    latin = os.fsdecode(b"caf\xe9")
    assert main(["--config", CONFIG, "one", latin, "", "a\0b", "\ufefftwo", " "]) == BAD_INPUT
    assert answered == ["one", "two"]
    messages = capsys.readouterr().err.splitlines()
    assert messages == [
        "error: question 2 must be text in UTF-8, got 'caf\\udce9'",
        "error: question 3 must be a question, got ''",
        "error: question 4 must be text, got a NUL in 'a\\x00b'",
        "error: question 6 must be a question, got ' '",
    ]
