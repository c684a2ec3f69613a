"""The screen of generators: grading, selection, resuming, and its page."""

import json
import re

import pytest

from experiments.real_agents import screen
from experiments.real_agents.screen import ANSWERS, CONFIG, ROLE, main, parser, questions
from experiments.real_agents.screen_page import screened_rows, selected
from rmas_jax.config import load_config
from rmas_jax.evaluation.graders import GRADERS
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.prompts import load_prompts
from rmas_jax.run_files import RunFiles

# Their verifiers compare texts, without a process for each answer.
CHOSEN = ("gcd", "leg_counting", "rectangle_count")  # the last one's prompts are long
LIMITS = {"low": 10, "high": 80}
ALONE = ((ROLE, ROLE),)


def options(out, *more, generators=CHOSEN):
    return [
        *("--model", "embedded/solver", "--out", str(out), "--items", "4"),
        *("--max-prompt-tokens", "600", "--max-new-tokens", "3"),
        *("--set", "runtime.compilation_cache=false", "--set", "runtime.progress=false"),
        *("--generators", *generators, *more),
    ]


def report_in(out):
    return json.loads((out / "screen.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("screen")
    assert main(options(out)) == 0
    return out


def row(generator, texts_of):
    """A row with answers graded by the verifier; `texts_of` makes texts from gold answers."""
    args = parser().parse_args(options("anywhere", "--seed", "3"))
    asked, reason = questions(generator, args)
    assert not reason
    texts = texts_of([example.answer for example in asked])
    answers = [
        {
            "question": example.question,
            "gold": example.answer,
            "text": text,
            "correct": GRADERS["reasoning"](text, example).correct,
            "at_limit": False,
        }
        for example, text in zip(asked, texts, strict=True)
    ]
    return {"generator": generator, "prompt_tokens": 9, "left_out": "", "answers": answers}


def test_those_between_never_and_always_are_selected():
    rows = [
        row("gcd", lambda golds: golds),
        row("leg_counting", lambda golds: [*golds[:2], "none", ""]),
        row("basic_arithmetic", lambda golds: [f"The answer is {gold}." for gold in golds]),
        {"generator": "rearc", "prompt_tokens": 999, "left_out": "long", "answers": []},
    ]
    assert [one.share.exact for one in screened_rows(rows)] == [4, 2, 0]
    assert selected(rows, **LIMITS) == ["leg_counting"]
    assert selected(rows, low=50, high=50) == ["leg_counting"]  # limits belong to it
    assert selected(rows, low=51, high=100) == ["gcd"]


def test_a_constant_answer_stands_beside_the_share():
    answers = [
        {"question": "", "gold": gold, "text": "Yes", "correct": gold == "Yes", "at_limit": False}
        for gold in ("Yes", "Yes", "Yes", "No")
    ]
    rows = [{"generator": "a", "prompt_tokens": 9, "left_out": "", "answers": answers}]
    [one] = screened_rows(rows)
    assert one.share.value == one.constant.value == 0.75


def test_a_screen_tells_every_answer_and_what_is_left_out(finished):
    rows = {row["generator"]: row for row in report_in(finished)["rows"]}
    assert {name: len(row["answers"]) for name, row in rows.items()} == {
        "gcd": 4,
        "leg_counting": 4,
        "rectangle_count": 0,
    }
    long = rows["rectangle_count"]
    assert long["prompt_tokens"] > 600
    assert long["left_out"] == f"a prompt of {long['prompt_tokens']} tokens"
    assert all(rows[name]["prompt_tokens"] <= 600 for name in ("gcd", "leg_counting"))
    text = (finished / "README.md").read_text()
    assert "Selected, 0: none." in text
    assert f"* rectangle_count: a prompt of {long['prompt_tokens']} tokens" in text
    assert re.search(r"\| gcd \|  \| 0\.0 % \[0\.0, 49\.0\], 0 of 4 \|", text)


def test_rows_stay_others_follow_and_the_record_spares_answers(finished, monkeypatch):
    """Of an interrupted screen, some answers are in the report and others in the record alone."""
    report, items = report_in(finished), RunFiles(finished / ANSWERS).items
    before, recorded = {row["generator"]: row for row in report["rows"]}, items.read_bytes()
    (finished / "screen.json").write_text(json.dumps({**report, "rows": [before["gcd"]]}))
    asked = []
    evaluate = screen.evaluate

    def noted(team, links, aligned, benchmarks, *rest, **more):
        asked.extend(benchmark.name for benchmark in benchmarks)
        return evaluate(team, links, aligned, benchmarks, *rest, **more)

    monkeypatch.setattr(screen, "evaluate", noted)
    assert main(options(finished, generators=(*CHOSEN, "count_bits"))) == 0
    assert sorted(asked) == ["count_bits", "leg_counting"]
    rows = {row["generator"]: row for row in report_in(finished)["rows"]}
    assert {name: row for name, row in rows.items() if name != "count_bits"} == before
    added = items.read_bytes().removeprefix(recorded)
    assert [json.loads(line)["benchmark"] for line in added.splitlines()] == ["count_bits"] * 4


def test_other_settings_are_refused_and_other_limits_are_not(finished, monkeypatch, capfd):
    names = [row["generator"] for row in report_in(finished)["rows"]]
    assert main(options(finished, "--items", "5", "--seed", "1")) == BAD_INPUT
    assert "made with other items, seed" in capfd.readouterr().err
    monkeypatch.setattr(screen, "load_run_team", None)  # nothing is left to answer
    assert main(options(finished, "--low", "0", generators=names)) == 0
    chosen = sorted({*names} - {"rectangle_count"})
    text = f"Selected, {len(chosen)}: {', '.join(chosen)}."
    assert text in (finished / "README.md").read_text()


def test_unknown_generators_and_limits_are_refused(tmp_path, capfd):
    assert main(options(tmp_path, generators=("gdc",))) == BAD_INPUT
    assert "--generators must be among" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(options(tmp_path, "--low", "81"))
    assert "--low must be from 0 to --high, got 81 and 80" in capfd.readouterr().err


def test_a_mistake_leaves_nothing_behind(tmp_path, capfd):
    """So that the right command is not refused for it."""
    for wrong in (("--set", "nosuch=1"), ("--model", str(tmp_path / "none"))):
        assert main(options(tmp_path, *wrong)) == BAD_INPUT
        assert capfd.readouterr().err and not [*tmp_path.iterdir()]


def test_alone_the_solver_reads_what_it_reads_in_its_team():
    team = load_config(CONFIG.replace("screen.yaml", "shared_evidence.yaml")).system
    alone = load_config(CONFIG).system
    [of_team, of_one] = [
        load_prompts(config.prompts, edges)[ROLE]
        for config, edges in ((team, (("planner", ROLE), (ROLE, "planner"))), (alone, ALONE))
    ]
    assert of_one.system == of_team.system
    assert of_one.first == of_team.first.replace("{planner}", "")
