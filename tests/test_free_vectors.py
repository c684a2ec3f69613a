"""The bound of the capacity curve: its questions, and vectors that are fitted to them."""

import json
import re

import numpy as np
import pytest
from blind_pair import AGENTS, SET, dials, team_of

from experiments.real_agents import free_vectors
from rmas_jax.config import EvidenceConfig
from rmas_jax.evaluation.metrics import wilson_interval


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


def test_vectors_are_fitted_and_written_once(tmp_path):
    options = ["--out", str(tmp_path), "--items", "2", "--draws", "3", "--held-out", "1", *SET]

    def measured(*steps, rate="0.1"):
        more = ["--optimizer-steps", "2", "--rate", rate, "--steps", *steps]
        assert free_vectors.main([*options, *more]) == 0
        return json.loads((tmp_path / free_vectors.REPORT).read_text())

    report = measured("3")
    [row] = report["rows"]
    assert row["latent_steps"] == 3 and row["n"] == 4 and 0 <= row["accuracy"] <= 1
    assert row["interval"] == list(wilson_interval(round(4 * row["accuracy"]), 4))
    assert report["settings"]["held_out"] == 1 and AGENTS not in report["settings"]["set"]
    marked = {**report, "rows": [{**row, "before": -1}]}  # as no measurement gives it
    (tmp_path / free_vectors.REPORT).write_text(json.dumps(marked))
    assert [of["before"] >= 0 for of in measured("3", "1")["rows"]] == [False, True]
    assert [of["before"] >= 0 for of in measured("1", rate="0.2")["rows"]] == [True]


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
