"""The capacity curve on all questions about each message, and its page."""

import json
import re

import jax
import numpy as np
import pytest

from experiments.real_agents import curve, curve_page, messages
from experiments.real_agents.capacity import CONFIG, with_steps
from experiments.real_agents.curve_page import (
    ALIGNED,
    KEPT,
    MEANS,
    NOISE,
    NONE,
    NOTHING,
    OTHER,
    OWN,
    TEXT,
    TRAINED,
    ZEROS,
    Answers,
)
from experiments.real_agents.free_vectors import questions
from experiments.real_agents.messages import Params
from experiments.real_agents.trials import TRIALS, Trial
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.interop.link_files import save_links
from rmas_jax.sharding import to_host
from rmas_jax.team import load_team, start_links

AGENTS = "system.agents={planner: embedded/planner, solver: embedded/solver}"
PERSONS = 2


@pytest.fixture(scope="module")
def team():
    config = load_config(CONFIG, [AGENTS])
    return load_team(with_steps(config, 3).system)


def links_of(team, seed):
    return start_links(team, start="identity", key=jax.random.key(seed))


def row(latent_steps, kind, answers, *, message=OWN, seed=None):
    return {
        "latent_steps": latent_steps,
        "kind": kind,
        "seed": seed,
        "message": message,
        "n": len(answers),
        "answers": answers,
    }


def test_what_arrives_decides_and_what_is_absent_does_not(team):
    """Answers of two batches are those of one; an absent message has no content."""
    dials = load_config(CONFIG, [f"data.evidence.pairs={PERSONS}"]).data.evidence
    asked = questions(dials, seed=0, items=4)
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


def test_every_row_is_measured_once_and_seeds_and_m_may_follow(team, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRIALS, "quick", Trial("two steps", 2, rate=1e-2))
    paths = [str(tmp_path / f"links-{seed}.safetensors") for seed in range(2)]
    for seed, path in enumerate(paths):
        save_links(path, to_host(links_of(team, seed)))
    options = ["--out", str(tmp_path / "page"), "--set", AGENTS, "--training", "quick"]
    options += ["--set", f"data.evidence.pairs={PERSONS}", "--split", "validation"]
    options += ["--messages", "2", "--items", "4", "--batch", "2"]

    def measured(*more):
        assert curve.main([*options, *more]) == 0
        report = json.loads((tmp_path / "page" / curve.REPORT).read_text())
        return [(*(row[name] for name in curve.Key._fields),) for row in report["rows"]], report

    first, report = measured("--links", paths[0], "--steps", "2")
    assert sorted(map(str, first)) == sorted(
        map(
            str,
            [
                *((2, TEXT, None, message) for message in (OWN, OTHER)),
                *((2, NOTHING, None, message) for message in (NONE, ZEROS)),
                *((2, MEANS, None, message) for message in (OWN, OTHER)),
                (2, KEPT, None, OWN),
                *(
                    (2, kind, 0, message)
                    for kind in (ALIGNED, TRAINED)
                    for message in (OWN, OTHER, NOISE)
                ),
            ],
        )
    )
    for of in report["rows"]:
        assert [len(answers) for answers in of["answers"]] == [PERSONS] * 2
        assert of["accuracy"] == np.mean([int(mark) for marks in of["answers"] for mark in marks])
    [crossed, *_] = [of["crossed"] for of in report["rows"] if "crossed" in of]
    assert [len(of["nearest"]) for of in crossed] == [2, 2] and crossed[0]["message"]
    again, other = measured("--links", *paths, "--steps", "2", "3")
    assert again[: len(first)] == first and len(again) == 2 * 7 + 4 * 6
    assert other["rows"][: len(first)] == report["rows"]
    text = (tmp_path / "page" / "README.md").read_text()
    assert "links of up to 2 seeds" in text and re.search(r"^\| 3 \|", text, re.M)
    assert f"| {crossed[0]['message']} | `" in text
    assert (tmp_path / "page" / curve_page.FIGURE).is_file()
    monkeypatch.setitem(TRIALS, "quick", Trial("three steps", 3))
    _, changed = measured("--links", *paths, "--steps", "2", "3")
    assert changed["rows"][:7] == other["rows"][:7] and len(changed["rows"]) == len(again)
    assert {of["trial"]["steps"] for of in changed["rows"] if of["kind"] == TRAINED} == {3}
    options.remove("--training")
    options.remove("quick")  # what is trained stays
    assert measured("--links", *paths, "--steps", "2", "3")[1] == changed
    assert curve.main([*options, "--links", paths[1]]) == BAD_INPUT  # other links of the first seed
    assert "made with other links; --out must be another folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        curve.main([*options, "--links", paths[0], "--messages", "3"])
    assert "--batch must divide --messages (3), got 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        curve.main([*options, "--links", paths[0], "--steps", "2", "0"])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err


def test_gains_are_over_the_same_questions():
    """Of two seeds, one is right where text is and on one question more."""
    seeds = np.array([[[1, 1], [1, 0]], [[1, 0], [1, 0]]], bool)
    text = Answers(np.array([[[1, 0], [1, 0]]], bool))
    gain = Answers(seeds, (0, 1)).above(text)
    assert (gain.items, gain.answers, gain.only_a, gain.only_b) == (2, 8, 1, 0)
    assert Answers(seeds).share.accuracy == 5 / 8 and Answers(seeds).share.n == 2
    second = Answers(~seeds[1:], (1,))  # of one seed of the two
    assert second.above(Answers(seeds, (0, 1))).answers == 4
    assert second.above(Answers(seeds, (0, 1))).only_b == 2


@pytest.mark.parametrize(("trained", "said"), [(30, "It is met"), (21, "It is missed")])
def test_the_goal_is_ten_points_above_both(trained, said):
    answers = {TEXT: 20, ALIGNED: 10, TRAINED: trained}
    rows = [
        row(4, kind, ["1"] * count + ["0"] * (40 - count), seed=None if kind == TEXT else 0)
        for kind, count in answers.items()
    ]
    assert said in curve_page.verdict(rows)
    assert "not measured" in curve_page.verdict(rows[:2])
    table = curve_page.curve_table(rows).to_markdown()
    assert re.search(r"^\| 4 \| 50\.0 \[.*\| 25\.0 \[.*\| -25\.0 \[.* 1/1 \|$", table, re.M)


def test_any_token_stands_in_a_table():
    for token, shown in ((" a|b`", "·a¦b'"), ("\n", "\\n"), ("", "")):
        assert curve_page.readable(token) == shown
