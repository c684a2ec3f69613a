"""Which link loses a word."""

import json

import jax
import numpy as np
import pytest
from blind_pair import AGENTS, SET, links_of, saved, team_of

from experiments.real_agents import crossing
from experiments.real_agents.options import CONFIG
from rmas_jax.config import load_config
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.links import Links, apply_link
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.runs.resolve import resolve
from rmas_jax.team import start_links
from rmas_jax.training.data.encoding import encode_dialogues
from rmas_jax.training.states.token_states import text_states

ITEMS, TRAINED = 6, 1


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Changed fields: few questions, and few items of training."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = "data.evidence={pairs: 2, hops: 2, asked: true, train: 8, validation: 8, test: 8}"
    return [AGENTS, sizes, f"inner.items={TRAINED}", f"output_dir={folder}"]


def test_rows_are_those_of_a_plain_computation(settings, tmp_path, capsys, monkeypatch):
    config = load_config(CONFIG, settings)
    found = resolve(config, validation_items=ITEMS)
    team, held_out = found.team, found.validation
    texts = {role: [x.texts[role][0] for x in held_out] for role in ("planner", "solver")}
    links = start_links(team, start="aligned", key=jax.random.key(0), texts=texts)
    broken = Links(jax.tree.map(np.zeros_like, links.inner), links.outer)
    files = saved(tmp_path, links, broken)
    options = [x for setting in settings for x in ("--set", setting)]
    options += ["--config", CONFIG, "--out", str(tmp_path), "--items", str(ITEMS)]
    assert crossing.main([*options, "--links", *files]) == 0
    assert "| planner->solver | both links | in " in capsys.readouterr().out
    report = json.loads((tmp_path / crossing.REPORT).read_text())
    monkeypatch.setattr(crossing, "resolve", None)  # it is there, and nothing is loaded
    assert crossing.main([*options, "--links", *files]) == 0
    assert "| planner->solver | both links | in " in capsys.readouterr().out
    assert crossing.main([*options, "--links", files[0]]) == BAD_INPUT
    assert "made with other links" in capsys.readouterr().err
    rows = {(row["edge"], row["after"], row["tokens"], row["links"]): row for row in report["rows"]}

    member = team.members["planner"]
    topology = team.system.topology

    def dialogues(examples):
        rounds = config.system.rounds
        return encode_dialogues(list(examples), member, topology=topology, rounds=rounds)

    states = text_states(team, "planner", dialogues(held_out))
    ids, hidden = states.ids[states.learned], states.take(states.learned)
    both = shared_tokens(*(of.tokenizer for of in team.members.values()))
    shared = dict(zip(*(of.tolist() for of in both), strict=True))
    theirs = np.array([shared.get(token, -1) for token in ids.tolist()])
    is_known = np.isin(ids, dialogues(found.train[:TRAINED]).text_ids)
    is_text = (ids != member.end_tokens[0]) & (theirs >= 0)
    edge, inner = "planner->solver", team.system.inner["planner"]
    outer, own = team.system.outer[edge], np.asarray(team.agents["planner"].embed(ids))
    for number, of in enumerate((links, broken)):
        thought = apply_link(inner, of.inner["planner"], hidden)
        for way, out, role, wanted in (
            (crossing.INNER, thought, "planner", ids),
            (crossing.BOTH, apply_link(outer, of.outer[edge], thought), "solver", theirs),
            (crossing.OUTER, apply_link(outer, of.outer[edge], own), "solver", theirs),
        ):
            unit = unit_rows(team.agents[role].embedding_table())
            cosine = unit_rows(out) @ unit.T
            for group, of_group in ((crossing.SEEN, is_known), (crossing.NEW, ~is_known)):
                counted = of_group & is_text
                row, at = rows[edge, way, group, number], np.flatnonzero(counted)
                assert row["n"] == len(at) > 0
                is_right = cosine.argmax(axis=1)[at] == wanted[at]
                assert row["right"] == pytest.approx(is_right.mean())
                assert row["cosine"] == pytest.approx(cosine[at, wanted[at]].mean(), abs=1e-5)
    of_embeddings, of_nothing = (
        rows[edge, way, crossing.SEEN, 1]["right"] for way in (crossing.OUTER, crossing.BOTH)
    )
    assert of_embeddings == rows[edge, crossing.OUTER, crossing.SEEN, 0]["right"] > of_nothing


def unit_rows(vectors):
    """Rows of norm 1, or 0."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def test_links_must_be_files(tmp_path, capsys):
    options = ["--config", CONFIG, "--out", str(tmp_path), *SET]
    assert crossing.main([*options, "--links", str(tmp_path / "none")]) == BAD_INPUT
    assert "--links must be files" in capsys.readouterr().err


def test_items_must_be_there(settings, tmp_path, capsys):
    changed = [x for setting in settings for x in ("--set", setting)]
    [path] = saved(tmp_path, links_of(team_of(2), 0))
    options = ["--config", CONFIG, *changed, "--out", str(tmp_path), "--links", path]
    assert crossing.main([*options, "--items", "9"]) == BAD_INPUT
    assert "--items must be at most 8, all of validation, got 9" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        crossing.main([*options, "--items", "0"])
    assert "argument --items: must be at least 1, got 0" in capsys.readouterr().err


def test_an_interval_is_over_different_tokens():
    """Ten tokens that are each there four times, with one fate each, say no more than ten do."""
    team = team_of(2)
    ids = np.arange(20, 30).repeat(4)
    vectors = np.array(team.agents["solver"].embed(np.roll(ids, 20)))  # half of them
    vectors[:20] = team.agents["solver"].embed(ids[:20])
    found = crossing.score(team, "solver", vectors, ids)
    assert (found["n"], found["different"], found["right"]) == (40, 10, 0.5)
    assert found["interval"] == pytest.approx([*wilson_interval(5, 10)])
