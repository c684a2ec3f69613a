"""The bound of the capacity curve: its questions, and vectors that are fitted to them."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from blind_pair import AGENTS, SET, dials, team_of

from experiments.real_agents import free_vectors
from rmas_jax.config import EvidenceConfig
from rmas_jax.host.errors import BAD_INPUT


def test_every_person_of_an_item_is_asked_about_under_each_draw_of_the_codes():
    asked = free_vectors.questions(EvidenceConfig(asked=False, pairs=3), seed=0, items=2, draws=4)
    assert asked.shape == (2, 4, 3) and len(asked.examples) == 24
    codes = set()
    for example in asked.examples:
        where = dict(re.findall(r"(\w+) is in (the \w+)\.", example.fields["evidence_planner"]))
        known = dict(re.findall(r"code of (the \w+) is (\d+)\.", example.fields["evidence_solver"]))
        (person,) = re.findall(r"where (\w+) is", example.question)
        assert known[where[person]] == example.answer
        codes.add((example.id, person, example.answer))
    assert len(codes) == 24  # no draw repeats a code


def test_draws_must_be_left_to_fit(tmp_path, capsys):
    with pytest.raises(SystemExit):
        free_vectors.main(["--out", str(tmp_path), "--draws", "2", "--held-out", "2"])
    assert "--held-out must be at least 1 and below --draws (2), got 2" in capsys.readouterr().err


def test_a_planner_that_knows_the_question_is_refused(tmp_path, capsys):
    """Its message holds one answer, and all are asked for."""
    options = ["--out", str(tmp_path), *SET, "--set", "data.evidence.asked=true"]
    assert free_vectors.main(options) == BAD_INPUT
    assert "data.evidence.asked must be false" in capsys.readouterr().err


def test_vectors_are_fitted_and_written_once(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--items", "2", "--draws", "3", "--held-out", "1", *SET]

    def measured(*steps, rate="0.1", code=0):
        more = ["--optimizer-steps", "2", "--rate", rate, "--steps", *steps]
        assert free_vectors.main([*options, *more]) == code
        return json.loads((tmp_path / free_vectors.REPORT).read_text())

    report = measured("3")
    [row] = report["rows"]
    assert row["latent_steps"] == 3 and (row["n"], row["answers"]) == (2, 4)
    assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert report["settings"]["held_out"] == 1 and AGENTS not in report["settings"]["set"]
    marked = {**report, "rows": [{**row, "before": -1}]}  # as no measurement gives it
    (tmp_path / free_vectors.REPORT).write_text(json.dumps(marked))
    both = measured("3", "1", "1")
    assert [of["before"] >= 0 for of in both["rows"]] == [False, True]
    assert measured("1", rate="0.2", code=BAD_INPUT) == both  # nothing is lost
    assert "made with other rate; --out must be another folder" in capsys.readouterr().err


def test_right_answers_are_counted_by_item(monkeypatch):
    """Two items of two persons under three draws; the first is right in the last draw alone."""
    team, asked = team_of(2), free_vectors.questions(dials(), seed=0, items=2, draws=3)
    draws = free_vectors.read_draws(team, asked)
    found = iter([[0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
    monkeypatch.setattr(free_vectors.jax, "jit", lambda function: function)
    of_draw = lambda *_: SimpleNamespace(exact_match=np.array(next(found), bool))  # noqa: E731
    monkeypatch.setattr(free_vectors, "scores", of_draw)
    vectors = free_vectors.message_vectors(team, asked, 2)
    right = free_vectors.exact(team, vectors, draws)
    assert right.astype(int).tolist() == [[0, 0, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]]


@pytest.mark.parametrize("count", [1, 5])
def test_a_fit_lowers_the_loss_of_its_own_questions(count):
    """With steps of next to no size as a control."""
    asked = free_vectors.questions(dials(), seed=0, items=1, draws=2)
    team = team_of(count)
    draws = free_vectors.read_draws(team, asked)[1:]
    agent = team.agents["solver"]
    before = free_vectors.message_vectors(team, asked, count)
    assert before.shape == (1, count, agent.width)

    def loss(vectors):
        rows = np.repeat(np.asarray(vectors), 2, axis=0)
        return float(free_vectors.scores(agent, rows, draws[0]).loss.mean())

    def fitted(rate):
        options = {"steps": 60, "rate": rate, "seed": 0}
        return free_vectors.fitted_vectors(team, asked, draws, count, **options)

    assert loss(fitted(0.3)) < 0.8 * loss(before) < loss(fitted(1e-6))
