"""The page of the capacity curve."""

import json
import re

import numpy as np
import pytest

from experiments.real_agents import curve, free_vectors, probe, trials
from experiments.real_agents.curve_page import FIGURE, Beside, figure, page, verdict
from experiments.real_agents.curve_rows import ALIGNED, OWN, TEXT, Answers, gain
from experiments.real_agents.curve_tables import curve_table, readable, trained_table
from experiments.real_agents.options import write_report
from experiments.real_agents.trials import TRIALS, definition
from rmas_jax.host.errors import BAD_INPUT

BEFORE, AFTER = ({"exact": exact, "n": 48} for exact in (0, 47))
SKILL = {"source": "a.gguf", "downloaded": BEFORE, "tuned": AFTER, "steps": 20, "batch_size": 16}
BOUND = [{"latent_steps": 2, "n": 128, "accuracy": 0.75, "interval": [0.66, 0.82]}]


def row(latent_steps, kind, right, *, n=40, message=OWN, seed=None):
    """With as many right answers; of a training, if the kind is its name."""
    of_trial = {"trial": definition(kind)} if kind in TRIALS and kind != ALIGNED else {}
    answers = ["1"] * right + ["0"] * (n - right)
    if kind != TEXT and seed is None:
        seed = 0
    keys = {"latent_steps": latent_steps, "kind": kind, "seed": seed, "message": message}
    return {**keys, "n": n, "answers": answers, **of_trial}


def rows_of(**right):
    """Rows at M = 4."""
    return [row(4, kind, count) for kind, count in right.items()]


def report_of(rows, **more):
    settings = {"split": "test", "agents": {"planner": "a", "solver": "b"}}
    return {"settings": settings, "rows": rows, **more}


def test_gains_are_over_the_same_questions():
    """Of two seeds, one is right where text is and on one question more."""
    seeds = np.array([[[1, 1], [1, 0]], [[1, 0], [1, 0]]], bool)
    text = Answers(np.array([[[1, 0], [1, 0]]], bool))
    above = Answers(seeds, (0, 1)).above(text)
    assert (above.items, above.answers, above.only_a, above.only_b) == (2, 8, 1, 0)
    assert Answers(seeds).accuracy.value == 5 / 8 and Answers(seeds).accuracy.n == 2
    second = Answers(~seeds[1:], (1,))  # of one seed of the two
    assert second.above(Answers(seeds, (0, 1))).answers == 4
    assert second.above(Answers(seeds, (0, 1))).only_b == 2
    apart = [row(4, ALIGNED, 20, seed=0), row(4, "states", 20, seed=1), row(4, TEXT, 20)]
    assert gain(apart, 4, "states", ALIGNED) is None  # they have no seed in common
    assert gain(apart, 4, "states", TEXT).answers == 40


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ({"states": 30}, "It is met by states."),
        ({"states": 21}, "It is missed."),
        ({"states": 21, "answers": 30}, "It is met by answers, of 2 trainings."),
        ({"states": 21, "answers": 21}, "It is missed, of 2 trainings."),
        ({"states_adapter": 30}, "This was not measured. With a sender that is no longer frozen, "),
        (
            {"states": 21, "states_adapter": 30},
            "It is missed. With a sender that is no longer frozen, states_adapter reaches it.",
        ),
        ({}, "This was not measured."),
    ],
)
def test_the_goal_is_ten_points_above_both_with_a_frozen_sender(trained, said):
    rows = rows_of(text=20, aligned=10, **trained)
    assert said in verdict(rows)
    assert "not measured" in verdict([{**of, "latent_steps": 8} for of in rows])


def test_every_training_has_its_gains_and_says_whether_the_sender_is_frozen():
    rows = rows_of(text=20, aligned=10, states=30, states_adapter=10)
    aligned = curve_table(rows).to_markdown()
    assert re.search(r"^\| 4 \| 50\.0 \[.*\| 25\.0 \[.*\| -25\.0 \[.*\| 1 \|$", aligned, re.M)
    table = trained_table(rows).to_markdown()
    for line in (
        r"^\| states \| yes \| 4 \| 75\.0 .*\| \+50\.0 \[.*\| \+25\.0 \[.*\| 1 \|$",
        r"^\| states_adapter \| no \| 4 \| 25\.0 .*\| \+0\.0 \[.*\| -25\.0 \[.*\| 1 \|$",
    ):
        assert re.search(line, table, re.M)
    lines = page(report_of(rows), Beside()).splitlines()
    (frozen,) = (line for line in lines if line.startswith("* `states`"))
    (other,) = (line for line in lines if line.startswith("* `states_adapter`"))
    assert "no longer frozen" in other and "no longer frozen" not in frozen


def test_the_figure_has_every_m_and_a_curve_for_each_training():
    rows = [*rows_of(text=20, aligned=10, states=30, answers=12), row(11, TEXT, 30)]
    axis = figure(rows, BOUND).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["2", "4", "11"]
    labels = axis.get_legend_handles_labels()[1]
    assert {"trained, states", "trained, answers", "vectors fitted to each item"} < {*labels}
    assert len(figure(rows_of(text=20)).axes[0].get_legend_handles_labels()[1]) == 1


def test_a_page_is_made_anew_from_reports_alone(tmp_path, capsys):
    """What lies beside it comes in; without a report there is no page."""
    options = ["--out", str(tmp_path), "--report-only"]
    assert curve.main(options) == BAD_INPUT
    assert f"--out must have a {curve.REPORT} with rows" in capsys.readouterr().err
    for text, said in (
        ('{"settings": {}, "rows": []}', "must have a curve.json with rows"),
        ('{"rows": [', "must be"),
        ("[1]", "must be a JSON object"),
        ('{"rows": []}', "must be a report, with settings and rows"),
    ):
        (tmp_path / curve.REPORT).write_text(text)
        assert curve.main(options) == BAD_INPUT and said in capsys.readouterr().err
        assert [*tmp_path.iterdir()] == [tmp_path / curve.REPORT]
    report = report_of(rows_of(text=20, aligned=10), skills={"planner": SKILL})
    write_report(tmp_path / curve.REPORT, report)
    assert curve.main(options) == 0
    text = (tmp_path / "README.md").read_text()
    assert (tmp_path / FIGURE).is_file() and "linear probe" not in text and "Trials" not in text
    skills = r"^\| planner \| a\.gguf \| 0\.0 %.* \| 97\.9 %.*, 47 of 48 \| 20 steps of 16 \|$"
    assert re.search(skills, text, re.M)
    found = {"n": 128, "accuracy": 0.5, "interval": [0.4, 0.6]}
    tried = {"text": {**found, "about": "text"}}
    tried["slow"] = {**found, "about": "slow", "other": 0.25, "train": 0.75}
    tried["slow"] |= {"parameters": 9, "seconds": 90}
    probed = {"seed": 1, "latent_steps": 4, "thoughts": "all", "pair": 0, "entity": "person"}
    probed |= {"n": 256, "chance": 0.25, "share": 0.5, "interval": [0.4, 0.6]}
    of_agents = {"agents": report["settings"]["agents"]}
    write_report(tmp_path / free_vectors.REPORT, {"settings": of_agents, "rows": BOUND})
    write_report(tmp_path / probe.REPORT, {"settings": of_agents, "rows": [probed]})
    write_report(
        tmp_path / trials.REPORT, {"settings": {**of_agents, "count": 4, "seed": 0}, "rows": tried}
    )
    assert curve.main(options) == 0
    text = (tmp_path / "README.md").read_text()
    for line in (
        skills,
        r"^\| 2 \| 75\.0 \[66\.0, 82\.0\] \| 128 \|$",
        r"^\| 1 \| all \| 50 \[40, 60\] \|$",
        r"^\| text \| 50\.0 \[40\.0, 60\.0\] \| - \|",
        r"^\| slow \| 50\.0 .* \| 25\.0 \| 75\.0 \| 9 \| 1\.5 \|$",
    ):
        assert re.search(line, text, re.M)
    assert json.loads((tmp_path / curve.REPORT).read_text()) == report
    others = {"agents": {"planner": "a", "solver": "c"}}
    write_report(tmp_path / probe.REPORT, {"settings": others, "rows": [probed]})
    assert curve.main(options) == 0  # a probe of other agents is not on the page
    assert "linear probe" not in (tmp_path / "README.md").read_text()


def test_any_token_stands_in_a_table():
    for token, shown in ((" a|b`", "·a¦b'"), ("\n", "\\n"), ("", "")):
        assert readable(token) == shown
