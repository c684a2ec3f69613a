"""The inner loop as a whole."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from systems import LATENT_STEPS
from teams import QUESTIONS, build_team, encode

from rmas_jax.config import InnerConfig
from rmas_jax.sharding import make_mesh, replicated
from rmas_jax.training import states
from rmas_jax.training.batches import TrainingData, encode_dialogues, encode_texts
from rmas_jax.training.curves import Curves
from rmas_jax.training.inner import states_before
from rmas_jax.training.inner_loop import run_inner_loop
from rmas_jax.training.state_cache import StateCache

CONFIG = InnerConfig(steps=5, batch_size=8, learning_rate=1e-2, warmup_steps=1, passes=2)
FIELDS = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}
EXAMPLES = [
    {
        "question": question,
        "plan": [f"from {i} to a", f"you plan {i}"],
        "refined_plan": ["plan about", f"refine {i} a"],
        "draft": ["w", "the parcel " * (i + 1)],
    }
    for i, question in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


def dialogues_of(team, examples=EXAMPLES):
    return {
        role: encode_dialogues(
            examples,
            team.tokenizers[role],
            team.prompts[role],
            topology=team.system.topology,
            role=role,
            text_fields=FIELDS,
            rounds=2,
        )
        for role in FIELDS
    }


def data_of(team):
    texts = {role: [example[field] for example in EXAMPLES] for role, field in FIELDS.items()}
    return TrainingData(
        prompts=encode(team, QUESTIONS, LATENT_STEPS),
        targets={role: encode_texts(team.tokenizers[role], texts[role]) for role in FIELDS},
    )


def train(team, links, directory, config=CONFIG, dialogues=None, **options):
    directory.mkdir(exist_ok=True)
    return run_inner_loop(
        team,
        links,
        dialogues or dialogues_of(team),
        data_of(team),
        config,
        rounds=2,
        key=jax.random.key(0),
        curves=Curves(directory / "metrics.jsonl"),
        log_every=2,
        progress=False,
        **options,
    )


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_all_links_are_trained_and_curves_say_how(team_and_links, tmp_path):
    team, links = team_and_links
    trained = train(team, links, tmp_path)
    for part in ("inner", "outer"):
        for name, params in links[part].items():
            assert not same(params, trained[part][name]), name
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = [*links["inner"], *links["outer"]]
    for name in names:
        assert [row["step"] for row in rows if row["series"] == name] == [0, 2, 4, 5, 7, 9]
    kept = train(team, links, tmp_path / "inner", align_outer=False)
    assert same(kept["outer"], links["outer"])
    one_pass = dataclasses.replace(CONFIG, passes=1)
    first = train(team, links, tmp_path / "inner", one_pass, align_outer=False)
    assert not same(first["inner"], kept["inner"])


def test_an_outer_link_reads_what_is_sent(team_and_links, tmp_path):
    team, links = team_and_links
    config = dataclasses.replace(CONFIG, passes=1)
    hidden = team._replace(system=team.system.replace(sent_vectors="outer_of_hidden"))
    one, other = (train(t, links, tmp_path / str(i), config) for i, t in enumerate((team, hidden)))
    assert same(one["inner"], other["inner"])
    assert not same(one["outer"], other["outer"])


def test_no_steps_leave_all_links_as_they_are(team_and_links, tmp_path):
    team, links = team_and_links
    config = dataclasses.replace(CONFIG, steps=0, warmup_steps=0)
    assert same(train(team, links, tmp_path, config), links)


def test_links_are_the_same_on_many_devices(team_and_links, tmp_path):
    team, links = team_and_links
    trained = []
    for size in (1, 8):
        mesh = make_mesh(size, devices=jax.devices()[:size])
        on_mesh = team._replace(mesh=mesh, agents=jax.device_put(team.agents, replicated(mesh)))
        trained.append(train(on_mesh, links, tmp_path / str(size)))
    for one, many, start in zip(*map(jax.tree.leaves, (*trained, links)), strict=True):
        assert np.abs(one - start).max() > 1e-3
        np.testing.assert_allclose(many, one, atol=1e-5)


def test_cached_states_are_not_read_again_and_make_the_same_links(
    team_and_links, tmp_path, monkeypatch
):
    team, links = team_and_links
    traces = []

    def counted(*args, **options):
        traces.append(args)
        return states_before(*args, **options)

    monkeypatch.setattr(states, "states_before", counted)

    def run(name, dialogues=None, **kept):
        """The links, and whether an agent read: asking for shapes traces once for each role."""
        agents = {role: role for role in FIELDS}
        cache = StateCache(tmp_path / "states", agents=agents, **kept) if kept else None
        traces.clear()
        trained = train(team, links, tmp_path / name, dialogues=dialogues, cache=cache)
        return trained, len(traces) > len(FIELDS)

    without, reads = run("without")
    assert reads
    cold, reads = run("cold", limit_gib=1)
    assert reads and same(cold, without)
    warm, reads = run("warm", limit_gib=1)
    assert not reads and same(warm, without)
    _, reads = run("fewer", dialogues_of(team, EXAMPLES[:2]), limit_gib=1)
    assert reads
    assert len(list((tmp_path / "states").glob("*/states.npy"))) == 2 * len(FIELDS)


def test_the_same_states_make_the_same_links_on_many_devices_bit_for_bit(team_and_links, tmp_path):
    team, links = team_and_links
    config = dataclasses.replace(CONFIG, passes=1)
    trained = []
    for size in (1, 8):
        mesh = make_mesh(size, devices=jax.devices()[:size])
        on_mesh = team._replace(mesh=mesh, agents=jax.device_put(team.agents, replicated(mesh)))
        cache = StateCache(tmp_path / "states", limit_gib=1, agents={role: role for role in FIELDS})
        trained.append(train(on_mesh, links, tmp_path / str(size), config, cache=cache))
    assert same(*trained)
