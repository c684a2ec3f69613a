"""The capacity curve on all questions about each message: what is measured, and what is kept."""

import json

import numpy as np
import pytest
from blind_pair import AGENTS, PERSONS, SET, dials, links_of, saved, team_of

from experiments.real_agents import curve, curve_page, messages, options
from experiments.real_agents.curve_rows import (
    ALIGNED,
    FIRST,
    KEPT,
    MEANS,
    NOISE,
    NONE,
    NOTHING,
    OTHER,
    OWN,
    TEXT,
    WITHOUT_LINKS,
    ZEROS,
)
from experiments.real_agents.free_vectors import questions
from experiments.real_agents.messages import Params
from experiments.real_agents.skill_card import RECORD
from experiments.real_agents.trials import TRIALS, Trial, definition
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT

QUICK, TUNED = Trial("two steps", 2, rate=1e-2), Trial("an adapter", 2, rank=2)


@pytest.fixture(scope="module")
def team():
    return team_of(3)


def test_what_arrives_decides_and_what_is_absent_does_not(team):
    """Answers of two batches are those of one; an absent message has no content."""
    asked = questions(dials(), seed=0, items=4)
    one, two = (messages.read_all(team, asked, count).batches(team) for count in (1, 2))
    params = Params(links_of(team, 1))
    vectors = messages.sent(team, params, two)
    np.testing.assert_allclose(vectors, messages.sent(team, params, one), rtol=1e-4, atol=1e-5)
    batch = one[0]

    def loss(vectors, present=None):
        return np.asarray(messages.answered(team.agents, vectors, batch, present).loss)

    absent = np.zeros(3, bool)
    np.testing.assert_array_equal(loss(vectors, absent), loss(0 * vectors, absent))
    np.testing.assert_allclose(loss(vectors), loss(vectors, ~absent), rtol=1e-6)
    for other in (loss(0 * vectors), loss(np.roll(vectors, 1, 0)), loss(vectors, absent)):
        assert np.abs(other - loss(vectors)).max() > 1e-4
    assert messages.right(team, vectors, two).shape == (4, PERSONS)


@pytest.fixture
def measured(team, tmp_path, monkeypatch):
    """A function that measures with links of some seeds, and returns the report."""
    for name, trial in (("quick", QUICK), ("tuned", TUNED)):
        monkeypatch.setitem(TRIALS, name, trial)
    paths = saved(tmp_path, *(links_of(team, seed) for seed in range(2)))
    fixed = ["--out", str(tmp_path / "page"), *SET, "--split", "validation"]
    fixed += ["--messages", "2", "--items", "4", "--batch", "2"]

    def measure(*more, seeds=1, code=0):
        assert curve.main([*fixed, "--links", *paths[:seeds], *more]) == code
        return json.loads((tmp_path / "page" / curve.REPORT).read_text())

    return measure


def keys_of(report):
    return [tuple(row[name] for name in curve.Key._fields) for row in report["rows"]]


def test_every_row_is_measured_once_and_seeds_m_and_trainings_may_follow(
    measured, tmp_path, monkeypatch
):
    first = measured("--steps", "2", "--training", "quick")
    assert {*keys_of(first)} == {
        *((2, TEXT, None, message) for message in (OWN, OTHER)),
        *((2, NOTHING, None, message) for message in (NONE, ZEROS)),
        *((2, kind, None, message) for kind in (MEANS, FIRST) for message in (OWN, OTHER)),
        (2, KEPT, None, OWN),
        *((2, kind, 0, of) for kind in (ALIGNED, "quick") for of in (OWN, OTHER, NOISE)),
    }
    for row in first["rows"]:
        assert [len(answers) for answers in row["answers"]] == [PERSONS] * 2
        assert row["accuracy"] == np.mean([int(mark) for marks in row["answers"] for mark in marks])
        assert row.get("trial") == (definition("quick") if row["kind"] == "quick" else None)
    [crossed, *_] = [row["crossed"] for row in first["rows"] if "crossed" in row]
    assert [len(of["nearest"]) for of in crossed] == [2, 2] and crossed[0]["message"]
    # A further seed, M and training; the first training is not wanted now, and stays.
    more = ["--steps", "2", "3", "--training", "tuned", "--trained-steps", "3"]
    second = measured(*more, seeds=2)
    old = len(first["rows"])
    assert second["rows"][:old] == first["rows"]
    assert {key[:3] for key in keys_of(second)[old:]} == {
        *((3, kind, None) for kind in WITHOUT_LINKS),
        *((count, ALIGNED, seed) for count, seed in ((3, 0), (2, 1), (3, 1))),
        *((3, "tuned", seed) for seed in (0, 1)),
    }
    assert len({*keys_of(second)}) == len(second["rows"])
    text = (tmp_path / "page" / "README.md").read_text()
    assert "links of up to 2 seeds" in text and f"| {crossed[0]['message']} | `" in text
    assert (tmp_path / "page" / curve_page.FIGURE).is_file()
    # Only the trained rows of a training that is another now are measured again.
    monkeypatch.setitem(TRIALS, "quick", Trial("three steps", 3))
    third = measured("--steps", "2", "--training", "quick", seeds=2)
    kept = [row for row in second["rows"] if row["kind"] != "quick"]
    assert third["rows"][: len(kept)] == kept
    new = third["rows"][len(kept) :]
    assert {(row["kind"], row["seed"], row["trial"]["steps"]) for row in new} == {
        ("quick", 0, 3),
        ("quick", 1, 3),
    }


def test_reports_of_other_settings_are_refused(measured, tmp_path, capsys):
    report = {"settings": {"links": ["0"]}, "rows": []}
    options.write_report(tmp_path / "page" / curve.REPORT, report)
    assert measured("--steps", "2", code=BAD_INPUT) == report
    said = "evidence, set, agents, split, messages, items, batch, seed, links; --out must be"
    assert said in capsys.readouterr().err
    for wrong, said in (
        (["--messages", "3"], "--batch must divide --messages (3), got 2"),
        (["--messages", "1", "--batch", "1"], "--messages must be at least 2, got 1"),
        (["--messages", "0"], "argument --messages: must be at least 1, got 0"),
        (["--steps", "2", "0"], "argument --steps: must be at least 1, got 0"),
        (["--steps", "2", "x"], "argument --steps: invalid int value: 'x'"),
        (["--steps", "2", "--trained-steps", "3"], "--trained-steps must be of --steps, got [3]"),
    ):
        with pytest.raises(SystemExit):
            measured(*wrong)
        assert said in capsys.readouterr().err
    none = str(tmp_path / "none")
    assert curve.main(["--out", str(tmp_path / "page"), *SET, "--links", none]) == BAD_INPUT
    assert f"--links must be files, got {none}" in capsys.readouterr().err
    twice = 2 * saved(tmp_path, links_of(team_of(2), 0))
    assert curve.main(["--out", str(tmp_path / "page"), *SET, "--links", *twice]) == BAD_INPUT
    assert "--links must be different files, got" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        curve.main(["--out", str(tmp_path / "page")])
    assert "--links must name a file for each seed, got none" in capsys.readouterr().err


def test_settings_know_agents_by_their_skills_and_have_no_path(tmp_path):
    """Another skill is another agent, wherever it lies."""

    def settings(folder, record):
        folder.mkdir(parents=True)
        (folder / RECORD).write_text(record)
        fields = [AGENTS, "data.evidence.pairs=3"]
        fields.insert(1, f"system.agents.planner={folder}")
        args = curve.parser().parse_args(
            ["--out", "o", "--config", str(tmp_path / "a.yaml")]
            + [part for field in fields for part in ("--set", field)]
        )
        found = options.settings_of(args, load_config(options.CONFIG, fields), "seed")
        assert str(tmp_path) not in json.dumps(found)
        return found

    one, moved, other = (
        settings(tmp_path / name, record) for name, record in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert one == moved and one["agents"]["planner"] != other["agents"]["planner"]
    assert one["agents"]["solver"] == "embedded/solver" and one["set"] == ["data.evidence.pairs=3"]
    assert one["evidence"]["pairs"] == 3
    assert one["config"] == "a.yaml" and one["seed"] == 0
