"""The capacity study: its page, and the questions and vectors of its bound."""

import json
import re

import numpy as np
import pytest
from made_runs import items_of, result_row

from experiments.real_agents import capacity, free_vectors, probe
from experiments.real_agents.capacity import BOUND, CONFIG, PROBE, read_bound, variant
from experiments.real_agents.capacity_page import FIGURE, Bound, Study, figure, page, verdict
from rmas_jax.config import EvidenceConfig, load_config
from rmas_jax.evaluation.methods import ALIGNED, LATENT, NO_LATENTS, TRUNCATED
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.reporting.results import Results

AGENTS = "system.agents={planner: embedded/planner, solver: embedded/solver}"


def results(trained, *, aligned=100, cut=104):
    """Of 200 questions, as many right ones by method."""
    counts = {LATENT: trained, ALIGNED: aligned, TRUNCATED: cut, NO_LATENTS: 50}
    rows = [result_row(method, 1, "test", 0, count) for method, count in counts.items()]
    return Results(rows, [item for row in rows for item in items_of(row)])


def test_the_goal_is_met_ten_points_above_both_others_and_not_below():
    assert "is met" in verdict({4: results(130)})
    assert "is missed" in verdict({4: results(123)})  # 9.5 points above cut text
    assert "is missed" in verdict({4: results(130, aligned=115)})
    assert "not measured" in verdict({8: results(130)})


def test_the_page_has_a_line_for_each_m():
    study = Study({1: results(60), 4: results(130)})
    text = page(study)
    assert re.search(r"^\| 1 \| 30\.0 \[.*\| -20\.0 \[", text, re.M)  # trained, over aligned
    assert re.search(r"^\| 4 \| 65\.0 \[.*\| \+15\.0 \[.*\| \+13\.0 \[", text, re.M)
    drawn = figure(study).axes[0]
    assert [tick.get_text() for tick in drawn.get_xticklabels()] == ["1", "4"]


def test_the_page_has_the_bound_and_the_skills_of_the_agents():
    before, after = ({"exact": exact, "n": 48} for exact in (0, 47))
    skill = {"source": "a.gguf", "downloaded": before, "tuned": after}
    study = Study(
        {4: results(130)},
        bound=[Bound(2, 128, 0.75, (0.66, 0.82)), Bound(4, 128, 1.0, (0.97, 1.0))],
        skills={"planner": skill | {"steps": 20, "batch_size": 16}},
    )
    text = page(study)
    assert re.search(r"^\| 2 \| 75\.0 \[66\.0, 82\.0\] \| 128 \|$", text, re.M)
    assert re.search(
        r"^\| planner \| a\.gguf \| 0\.0 %.* \| 97\.9 %.*, 47 of 48 \| 20 steps", text, re.M
    )
    axis = figure(study).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["2", "4"]


def test_a_page_needs_no_finished_run(tmp_path):
    options = ["--report-only", "--set", AGENTS, "--set", f"output_dir={tmp_path / 'runs'}"]
    assert capacity.main(["--out", str(tmp_path / "page"), *options]) == 0
    text = (tmp_path / "page" / "README.md").read_text()
    assert "No run of the curve is finished." in text and "png" not in text
    assert not (tmp_path / "page" / FIGURE).exists()


def test_the_page_has_what_the_trials_came_to():
    row = {"about": "slow", "n": 128, "accuracy": 0.5, "interval": [0.4, 0.6], "other": 0.25}
    report = {
        "settings": {"count": 4, "seed": 0},
        "rows": {
            "text": {**row, "about": "text"},
            "a": {**row, "train": 0.75, "parameters": 9, "seconds": 90},
        },
    }
    report["rows"]["text"].pop("other")
    text = page(Study({4: results(130)}, trials=report))
    assert re.search(r"^\| text \| 50\.0 \[40\.0, 60\.0\] \| - \|", text, re.M)
    assert re.search(r"^\| slow \| 50\.0 .* \| 25\.0 \| 75\.0 \| 9 \| 1\.5 \|$", text, re.M)


def test_runs_differ_in_m_and_seed_alone():
    config = load_config(CONFIG, [AGENTS])
    one, other = variant(config, 4, 0), variant(config, 8, 1)
    assert (one.name, other.name) == ("capacity-4-0", "capacity-8-1")
    assert one.system.latent_steps == 4 and other.system.latent_steps == 8
    assert one.outer == other.outer and one.data == other.data


def test_every_person_of_an_item_is_asked_about_under_each_draw_of_the_codes():
    dials = EvidenceConfig(asked=False, pairs=3)
    asked = free_vectors.questions(dials, seed=0, items=2, draws=4)
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


def test_vectors_are_fitted_and_written(tmp_path):
    arguments = ["--out", str(tmp_path), "--steps", "1", "3", "--items", "2", "--draws", "3"]
    arguments += ["--held-out", "1", "--optimizer-steps", "2", "--set", AGENTS]
    assert free_vectors.main([*arguments, "--set", "data.evidence.pairs=2"]) == 0
    report = json.loads((tmp_path / BOUND).read_text())
    assert [row["latent_steps"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert row["n"] == 4 and 0 <= row["accuracy"] <= 1
        assert row["interval"] == list(wilson_interval(round(4 * row["accuracy"]), 4))
    assert report["settings"]["held_out"] == 1
    assert [row.latent_steps for row in read_bound(tmp_path / BOUND)] == [1, 3]
    assert read_bound(tmp_path / "other") == []


@pytest.mark.parametrize("count", [1, 5])
def test_a_fit_lowers_the_loss_of_its_own_questions(count):
    """With steps of next to no size as a control."""
    config = load_config(CONFIG, [AGENTS, "data.evidence.pairs=2"])
    dials = config.data.evidence
    asked = free_vectors.questions(dials, seed=0, items=1, draws=2)
    team = free_vectors.load_team(free_vectors.with_steps(config, count).system)
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


def test_a_probe_finds_what_lies_in_thoughts_and_nothing_else():
    """Thoughts that hold the first person and the second place, of other entities in test."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((10, 14))

    def split(n):
        entities = rng.standard_normal((n, 3, 2, 5))
        told = np.concatenate([entities[:, 0, 0], entities[:, 1, 1]], axis=1)
        noise = 0.01 * rng.standard_normal((n, 2, 7))
        return probe.Probed((told @ spread).reshape(n, 2, 7) + noise, entities)

    shares = probe.found_shares(split(400), split(100), split(100), [0, 1])
    found = np.zeros((3, 2), bool)
    found[0, 0] = found[1, 1] = True
    assert (shares[found] > 0.9).all() and (shares[~found] < 0.55).all()


def test_a_probe_reads_the_thoughts_of_a_run(tmp_path):
    options = ["--out", str(tmp_path / "page"), "--steps", "2", "--seeds", "0", "--set", AGENTS]
    small = ["data.evidence.pairs=2", "data.evidence.train=64", "data.evidence.test=4"]
    small += ["data.evidence.validation=4", "inner.items=16", "inner.steps=2", "inner.batch_size=8"]
    small += ["outer.validation_size=4", "outer.phases.0.steps=2", "outer.phases.0.batch_size=2"]
    small += ["inner.warmup_steps=0", "outer.phases.0.warmup_steps=0"]
    small += ["evaluation.batch_size=4", f"output_dir={tmp_path / 'runs'}"]
    for field in small:
        options += ["--set", field]
    assert capacity.main(options) == 0
    arguments = [str(tmp_path / "runs/capacity-2-0"), "--out", str(tmp_path / "page")]
    assert probe.main([*arguments, "--items", "12", "--held-out", "6", "--batch", "4"]) == 0
    rows = json.loads((tmp_path / "page" / PROBE).read_text())["rows"]
    assert len(rows) == 2 * 2 * 2 * 2 and {row["n"] for row in rows} == {6}
    assert capacity.main([*options, "--report-only"]) == 0
    text = (tmp_path / "page/README.md").read_text()
    assert "linear probe" in text and "aligned | all |" in text
