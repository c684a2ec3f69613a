"""Role texts from the embedded team's own work, kept, tried again, resumed."""

import json
import os
from pathlib import Path

import pytest

from rmas_jax.cli.role_texts import dated, main
from rmas_jax.config import DataConfig, load_config
from rmas_jax.data import relay
from rmas_jax.data.loading import load_dataset
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.prompts import today

ROOT = Path(__file__).parents[2]
CONFIG = "quickstart"
ITEMS = [row for row in relay.examples("test") if row["difficulty"] <= 6][:7]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function that makes texts in two rounds, of six gates at most; the last answer is wrong."""
    monkeypatch.chdir(ROOT)
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"id": str(i), "question": item["question"], "answer": item["answer"]}
        for i, item in enumerate(ITEMS)
    ]
    rows[-1]["answer"] = "another phrase"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(out, *options):
        common = ["--config", CONFIG, "--set", "system.rounds=2", "--questions", str(questions)]
        common += ["--max-tokens", "10", "--batch-size", "4", "--quiet"]
        return main([*common, "--out", str(out), *options])

    return start


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_answers_give_the_texts_of_the_task(make, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    assert make(out) == 0
    assert "6 of 7 items kept" in capsys.readouterr().out
    for row in lines(out):
        item = ITEMS[int(row["id"])]
        for field in ("plan", "refined_plan", "draft"):
            assert row[field] == item[field][:2]
    (missed,) = lines(tmp_path / "texts.jsonl.missed")
    assert missed["id"] == "6" and ITEMS[6]["answer"] in missed["reason"]

    # It goes on where it was cut off, in the middle of a line, and ends with the same file.
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    assert make(out, "--batch-size", "3") == 0
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(lines(tmp_path / "texts.jsonl.missed")) == 1
    before = out.stat().st_mtime_ns
    assert make(out) == 0 and out.stat().st_mtime_ns == before

    # The file is one to train on.
    config = DataConfig(dataset=str(out), validation_share=0.4, test_share=0.0)
    task = load_dataset(config, roles=relay.ROLES, rounds=2, data_dir=tmp_path)
    assert set(task.text_roles) == set(relay.ROLES) and not task.bad_rows

    assert make(out, "--seed", "1") == BAD_INPUT
    assert "seed must be as in" in capsys.readouterr().err


def test_columns_of_prompts_are_read_and_kept(make, tmp_path, capsys):
    questions, prompts = tmp_path / "questions.jsonl", tmp_path / "prompts.yaml"
    relay_prompts = (ROOT / "rmas_jax/prompts/relay.yaml").read_text()
    prompts.write_text(relay_prompts.replace('first: "{question}', 'first: "{question} {hint}', 1))
    out = tmp_path / "texts.jsonl"
    options = ["--accept", "any", "--set", f"system.prompts={prompts}", "--set", "system.rounds=2"]
    assert make(out, *options) == BAD_INPUT
    message = capsys.readouterr().err
    assert "planner: first must have columns" in message and "{hint}" in message
    assert not out.exists()

    def write(hint):
        rows = [row | {"hint": f"{hint} {row['id']}"} for row in lines(questions)]
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("Kenal")
    assert make(out, *options) == 0
    assert lines(out) and all(row["hint"] == f"Kenal {row['id']}" for row in lines(out))
    write("Bison")  # the texts of other hints are others
    assert make(out, *options) == BAD_INPUT
    assert "questions must be as in" in capsys.readouterr().err
    prompts.write_text(prompts.read_text().replace("{hint}", "{draft}"))
    assert make(out, *options) == BAD_INPUT
    assert "got {draft}, where those of solver are written" in capsys.readouterr().err


def test_damaged_lines_are_made_anew_and_said(make, tmp_path, capsys):
    out, missed = tmp_path / "texts.jsonl", tmp_path / "texts.jsonl.missed"
    assert make(out) == 0
    whole, misses = out.read_bytes(), missed.read_bytes()
    first, second, *others = whole.splitlines(keepends=True)
    noise = [
        b"\xff\xfe no text\n",
        b"\0" * 50 + b"\n",
        b"3\n",
        b'{"id": [1]}\n',
        b"[" * 10**5 + b"\n",
    ]
    for damaged in ([first, second[:30] + b"\n", *noise, *others], [*noise, first, first, *others]):
        out.write_bytes(b"".join(damaged) + second[:20])
        missed.write_bytes(misses + misses + b'{"id"')
        capsys.readouterr()
        assert make(out) == 0
        said = capsys.readouterr().err
        assert (
            f"{out}: removed " in said and f"{missed}: removed 1 damaged or repeated lines" in said
        )
        assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
        assert missed.read_bytes() == misses


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "[" * 10**5,
        "\0",
        "{}",
        '{"system": 1}',
        f'{{"a": {"1" * 5000}}}',
    ],
)
def test_damaged_settings_are_refused_with_the_way_out(make, tmp_path, capsys, content):
    out, marks = tmp_path / "texts.jsonl", tmp_path / "texts.jsonl.settings"
    out.touch()
    marks.write_text(content)
    assert make(out) == BAD_INPUT
    said = capsys.readouterr().err
    assert "texts.jsonl" in said and "remove it" in said and "texts.jsonl.settings" in said
    assert "Traceback" not in said and marks.read_text() == content


def test_attempts_differ_and_do_not_depend_on_the_batch(make, tmp_path):
    sampled = ["--temperature", "1.5", "--attempts", "2"]
    assert make(tmp_path / "a.jsonl", *sampled) == 0
    assert make(tmp_path / "b.jsonl", *sampled, "--batch-size", "7") == 0
    kept, missed = {}, {}
    for name in "ab":
        kept[name] = {row["id"]: row for row in lines(tmp_path / f"{name}.jsonl")}
        rows = lines(tmp_path / f"{name}.jsonl.missed")
        missed[name] = {(row["id"], row["attempt"]): row["reason"] for row in rows}
    assert kept["a"] == kept["b"] and missed["a"] == missed["b"]
    assert missed["a"]["6", 1] != missed["a"]["6", 2] and ("6", 3) not in missed["a"]
    assert any(name in kept["a"] for name, _ in missed["a"])  # right at the second attempt


def test_any_answer_can_be_accepted_and_the_given_one_is_learned(make, tmp_path):
    out = tmp_path / "texts.jsonl"
    assert make(out, "--accept", "any") == 0
    rows = lines(out)
    assert len(rows) == 7 and rows[-1]["answer"] == "another phrase"
    assert all("draft" not in row and len(row["plan"]) == 2 for row in rows)


def test_texts_that_are_cut_are_not_kept(make, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    assert make(out, "--accept", "any", "--max-tokens", "4") == 0
    assert "0 of 7 items kept" in capsys.readouterr().out and not out.exists()
    assert "must end within 4 tokens" in lines(tmp_path / "texts.jsonl.missed")[0]["reason"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attempts", "2"], "--temperature"),
        (["--temperature", "-1"], "got -1.0"),
        (["--questions", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--set", "system.topology=ring"], "'ring'"),
        (["--attempts", "0"], "--attempts must be at least 1"),
        (["--batch-size", "1000000000000"], "--batch-size must be at least 1 and at most 65,536"),
        (["--max-tokens", "1000000000000"], "--max-tokens must be at least 1 and at most 131,072"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--out", "."], "--out .: must be a regular file, got a folder"),
        (["--out", "/dev/null/x.jsonl"], "cannot be written (Not a directory)"),
        (["--out", "n" * 300], "cannot be written (File name too long)"),
    ],
)
def test_bad_input_is_said_before_anything_is_made(make, tmp_path, capsys, options, words):
    assert make(tmp_path / "texts.jsonl", *options) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("texts*"))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_settings_that_are_no_file_are_not_waited_for(make, tmp_path, capsys, kind):
    out, marks = tmp_path / "texts.jsonl", tmp_path / "texts.jsonl.settings"
    {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
    }[kind](marks)
    assert make(out) == BAD_INPUT
    assert f"must be a regular file, got a {kind}; choose another" in capsys.readouterr().err


def test_a_flipped_bit_in_texts_costs_that_item_and_in_settings_is_refused(make, tmp_path, capsys):
    out, marks = tmp_path / "texts.jsonl", tmp_path / "texts.jsonl.settings"
    assert make(out) == 0
    whole, settings = out.read_bytes(), marks.read_text()
    question = json.loads(whole.splitlines()[0])["question"].encode()
    out.write_bytes(whole.replace(question, question[:-1] + b"!", 1))
    assert make(out) == 0
    assert "removed 1 damaged or repeated lines" in capsys.readouterr().err
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    marks.write_text(settings.replace(today(), "2020-02-29"))
    assert make(out) == BAD_INPUT
    assert "is damaged: its checksum" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", ".", "/"])
def test_texts_need_a_file(make, capsys, out):
    assert make(out) == BAD_INPUT
    assert "must be a regular file, got a folder" in capsys.readouterr().err


def test_a_file_of_another_origin_is_not_touched(make, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    out.write_text("mine")
    assert make(out) == BAD_INPUT
    assert "must be a new file or one of this command" in capsys.readouterr().err
    assert out.read_text() == "mine" and not list(tmp_path.glob("texts.jsonl.*"))


def test_texts_have_the_date_on_which_they_were_begun(tmp_path):
    config = load_config(CONFIG)
    out = tmp_path / "texts.jsonl"
    assert dated(config, out).system.date == today()
    system = {"date": "2026-01-31"}
    (tmp_path / "texts.jsonl.settings").write_text(json.dumps({"system": system}))
    assert dated(config, out).system.date == "2026-01-31"
    other = load_config(CONFIG, ["system.date='2020-02-29'"])
    assert dated(other, out).system.date == "2020-02-29"


def test_other_questions_do_not_count_as_done(make, tmp_path, capsys):
    """Without ids of their own, rows of files of one name have the same ids."""
    out = tmp_path / "texts.jsonl"
    questions = [tmp_path / folder / "questions.jsonl" for folder in "ab"]
    for path, item in zip(questions, ITEMS, strict=False):
        path.parent.mkdir()
        path.write_text(json.dumps({part: item[part] for part in ("question", "answer")}))
    options = ["--accept", "any", "--questions"]
    assert make(out, *options, str(questions[0])) == 0
    before = out.read_bytes()
    assert make(out, *options, str(questions[1])) == BAD_INPUT
    assert "questions must be as in" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert make(out, *options, str(questions[0])) == 0
