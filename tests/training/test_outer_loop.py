"""Phases of the outer loop: interrupted, resumed, damaged, diverged."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from systems import QUESTIONS

from rmas_jax.assembly import Team
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.recursion import Targets
from rmas_jax.training import outer_loop
from rmas_jax.training.batches import TrainingData
from rmas_jax.training.curves import Curves
from rmas_jax.training.outer_loop import DivergedError, run_phase

PHASE = PhaseConfig(
    name="tiny",
    latents="on_policy",
    rounds=2,
    steps=6,
    batch_size=2,
    learning_rate=1e-3,
    warmup_steps=2,
)

OUTER = OuterConfig(phases=(PHASE,), checkpoint_every=2, log_every=1, validation_every=3)


@pytest.fixture(scope="module")
def data(tiny_system):
    rng = np.random.default_rng(5)
    targets = {
        role: Targets(
            ids=rng.integers(0, 37, (3, 3, 4)).astype(np.int32), valid=np.ones((3, 3, 4), bool)
        )
        for role in tiny_system.system.topology.order
    }
    return TrainingData(prompts=tiny_system.prompts(QUESTIONS), targets=targets)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def run(tiny_system, data, directory, phase=PHASE):
    team = Team(tiny_system.system, tiny_system.agents, {}, {}, {})
    links = jax.tree.map(np.asarray, tiny_system.links)
    return run_phase(
        team,
        jax.tree.map(jax.numpy.asarray, links),
        data,
        data,
        OUTER,
        phase,
        key=jax.random.key(0),
        directory=directory / "checkpoints",
        curves=Curves(directory / "metrics.jsonl"),
        progress=False,
    )


def test_an_interrupted_phase_resumes_to_the_same_bits(tiny_system, data, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    links = run(tiny_system, data, whole)
    original, calls = outer_loop.CheckpointStore.save, []

    def save_then_die(store, done, state):
        original(store, done, state)
        calls.append(done)
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(outer_loop.CheckpointStore, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_system, data, broken)
    monkeypatch.setattr(outer_loop.CheckpointStore, "save", original)
    resumed = run(tiny_system, data, broken)
    assert calls == [2, 4]
    assert same(links, resumed)
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["series"] == "tiny"]
    assert steps == list(range(PHASE.steps))  # nothing twice, nothing lost


def test_a_damaged_newest_checkpoint_falls_back(tiny_system, data, tmp_path, caplog):
    whole = run(tiny_system, data, tmp_path)
    newest = tmp_path / "checkpoints" / "6"
    files = [file for file in newest.rglob("*") if file.is_file() and file.stat().st_size > 0]
    for file in files:
        file.write_bytes(b"damaged")
    again = run(tiny_system, data, tmp_path)
    assert "checkpoint 6 cannot be read" in caplog.text
    assert same(whole, again)


def test_a_loss_that_is_not_a_number_stops_the_run(tiny_system, data, tmp_path):
    phase = dataclasses.replace(PHASE, learning_rate=1e30, optimizer="sgd", warmup_steps=0)
    with pytest.raises(DivergedError, match="phase tiny, step"):
        run(tiny_system, data, tmp_path, phase)
