"""Tuning of an answerer by the driver of the links: resumed, on meshes, diverged."""

from __future__ import annotations

import dataclasses
import json
import signal

import flat
import jax
import numpy as np
import pytest
import teams
from systems import build_pattern
from training_worker import load_agents, write_agents

from rmas_jax import sharding
from rmas_jax.config import OuterConfig, TuningConfig
from rmas_jax.data.examples import Example
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.links import count_parameters
from rmas_jax.prompts import TokenRows, stage_tokens
from rmas_jax.rounds.supervision import Targets
from rmas_jax.rounds.text_channel import read_alone
from rmas_jax.sharding import make_mesh
from rmas_jax.training.curves import Curves
from rmas_jax.training.divergence import DivergedError
from rmas_jax.training.hooks import when
from rmas_jax.training.phases.loop import run_steps
from rmas_jax.training.tuning.loop import TrainableAdapter, encode_answers, new_adapter

TRAINING = {
    "steps": 6,
    "batch_size": 8,
    "accumulation": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
}
OUTER = OuterConfig(phases=(), checkpoint_every=2, log_every=1, validation_every=3)
ENTRIES = {
    "lora": TuningConfig(kind="lora", learning_rate=1e-2, rank=2),
    "full": TuningConfig(kind="full", learning_rate=1e-2),
    "soft_prompt": TuningConfig(kind="soft_prompt", learning_rate=1e-2, vectors=3),
}


@pytest.fixture(scope="module")
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def data(tiny):
    """The answer follows from the question, so that there is something to learn."""
    questions = ["where does it end"[: 3 + i % 4] for i in range(16)]
    prompt = stage_tokens(tiny.tokenizer, tiny.role_prompts["learner"], questions, slot_width=0)
    ids = (3 + np.arange(16)[:, None, None] % 4 + np.arange(4)).astype(np.int32)
    target = Targets(ids, np.ones(ids.shape, bool))
    return flat.encoded_items({"learner": prompt}, {"learner": target})


def tune(team, kind, data, directory, *, config=TRAINING, validation=None, hooks=(), **options):
    entry = dataclasses.replace(ENTRIES[kind], **config)
    return run_steps(
        TrainableAdapter(team, kind, entry, new_adapter(team, entry, jax.random.key(0))),
        data,
        data if validation is None else validation,
        dataclasses.replace(OUTER, **options),
        key=jax.random.key(1),
        directory=directory / "checkpoints",
        curves=Curves(directory / "metrics.jsonl"),
        hooks=hooks,
        progress=False,
    )


def curve(directory, series):
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["series"] == series]


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "full")) for kind in ENTRIES]
)
def test_after_sigterm_the_same_call_ends_with_the_same_bits(tiny, data, tmp_path, kind):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    before = jax.tree.map(np.array, tiny.agents["learner"].params)
    expected = tune(tiny.team(), kind, data, whole)
    ask = when(lambda event: event.step == 2, lambda _: signal.raise_signal(signal.SIGTERM))
    with sigterm_noted(), pytest.raises(PreemptedError, match=f"phase {kind} stopped after step 3"):
        tune(tiny.team(), kind, data, cut, hooks=[ask])
    found = tune(tiny.team(), kind, data, cut)
    assert same(found, expected)
    start = new_adapter(tiny.team(), ENTRIES[kind], jax.random.key(0))
    assert not same(start, expected)
    assert same(tiny.agents["learner"].params, before)  # the agent is frozen
    training, validation = (curve(cut, name) for name in (kind, f"{kind} (validation)"))
    assert [row["step"] for row in training] == list(range(6))
    assert [row["step"] for row in validation] == [2, 5]
    assert {row["loop"] for row in training + validation} == {"tuning"}
    assert len(validation[0]["text_exact_match/learner"]) == 1


@pytest.mark.parametrize("kind", ENTRIES)
def test_loss_falls(tiny, data, tmp_path, kind):
    config = {**TRAINING, "steps": 30, "learning_rate": 0.01 if kind == "full" else 0.1}
    tune(tiny.team(), kind, data, tmp_path, config=config, validation_every=30)
    losses = [row["loss"] for row in curve(tmp_path, kind)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.long  # as other steps of training are
def test_on_a_mesh_it_is_the_same(tiny, data, tmp_path, monkeypatch):
    """One step of plain descent moves an adapter by its gradient; validation comes after it."""
    monkeypatch.setattr(sharding, "SPLIT_STATE", 100)
    write_agents(tmp_path / "agents")
    config = {
        "steps": 1,
        "batch_size": 8,
        "learning_rate": 1.0,
        "warmup_steps": 0,
        "optimizer": "sgd",
        "schedule": "constant",
    }
    found = {}
    for name, sizes in {"one": (1, 1, 1), "many": (2, 2, 2)}.items():
        mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        team = tiny.team(load_agents(tmp_path / "agents", tiny, mesh), mesh)
        for kind in ENTRIES:
            directory = tmp_path / f"{name} {kind}"
            directory.mkdir()
            adapter = tune(team, kind, data, directory, config=config)
            series = (kind, f"{kind} (validation)")
            losses = [curve(directory, of)[0]["loss"] for of in series]
            found[name, kind] = adapter, losses
    for kind in ENTRIES:
        (one, losses), (many, losses_of_many) = found["one", kind], found["many", kind]
        start = new_adapter(team, ENTRIES[kind], jax.random.key(0))
        for ours, expected in zip(*map(jax.tree.leaves, (many, one)), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)
        leaves = zip(*map(jax.tree.leaves, jax.device_get((one, start))), strict=True)
        assert max(np.abs(a - b).max() for a, b in leaves) > 1e-2
        np.testing.assert_allclose(losses_of_many, losses, rtol=1e-5)
        assert abs(losses[0] - losses[1]) > 1e-3
    full = jax.tree.leaves(found["many", "full"][0])
    assert any(not x.sharding.is_fully_replicated for x in full)


def test_an_answerer_that_is_not_finite_is_named(tiny, data, tmp_path):
    team = teams.with_agents(tiny.team(), {"learner": teams.broken(tiny.agents["learner"])})
    with pytest.raises(DivergedError, match=r"lora, step 0: loss nan .*agent learner, answer"):
        tune(team, "lora", data, tmp_path)
    prompt = data.batch().prompts["learner"]
    read = {*prompt.body_ids.ravel().tolist(), *prompt.prefix_ids.ravel().tolist()}
    token = next(token for token in range(36, 8, -1) if token not in read)
    held_out = data.texts["learner"].ids.copy()
    held_out[4 * 5] = token  # the first of the four tokens of item 5
    held_out = TokenRows(held_out, data.texts["learner"].starts)
    validation = dataclasses.replace(data, texts={"learner": held_out})
    team = teams.with_agents(tiny.team(), {"learner": teams.broken(tiny.agents["learner"], token)})
    message = r"phase lora, step 2: validation: agent learner, answer: loss.*\(items 5\)"
    with pytest.raises(DivergedError, match=message):
        (tmp_path / "held out").mkdir()
        tune(team, "lora", data, tmp_path / "held out", validation=validation)


def test_a_soft_prompt_has_by_default_as_many_parameters_as_the_links(tiny):
    entry = TuningConfig(kind="soft_prompt", learning_rate=1)
    vectors = new_adapter(tiny.team(), entry, jax.random.key(0)).vectors
    assert abs(count_parameters(tiny.links) - vectors.size) <= vectors.shape[1] / 2
    assert vectors.shape[1] == tiny.agents["learner"].width


def test_the_answerer_learns_from_the_prompt_that_it_reads_alone(tmp_path):
    """Prompts as of the method `single_agents`; answers of the last round, with their end."""
    team, _ = teams.build_team(tmp_path)
    texts = {"solver": ("a draft", "to b"), "planner": ("from a", "from a")}
    examples = [Example(q, q, "b", texts=texts) for q in teams.QUESTIONS]
    data = encode_answers(team, examples).batch()
    member = team.members["solver"]
    alone = team.encode(teams.QUESTIONS, slot_width=0)["solver"]
    read = read_alone(member, alone)
    prompt = data.prompts["solver"]
    np.testing.assert_array_equal(prompt.prefix_ids, alone.prefix_ids)
    np.testing.assert_array_equal(read.ids, prompt.body_ids[:, 0])
    np.testing.assert_array_equal(read.valid, prompt.body_valid[:, 0])
    target = data.targets["solver"]
    ids = target.ids[0, 0][target.valid[0, 0]].tolist()
    assert member.tokenizer.decode(ids[:-1]) == "to b" and ids[-1] == member.end_tokens[0]
    assert target.ids.shape[:2] == (3, 1)
