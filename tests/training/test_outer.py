import dataclasses
import json

import jax
import numpy as np
import pytest
from systems import QUESTIONS

from rmas_jax.assembly import Team
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.recursion import Targets
from rmas_jax.training import driver
from rmas_jax.training.batches import TrainingData
from rmas_jax.training.driver import Curves, DivergedError, run_phase
from rmas_jax.training.outer import outer_loss, outer_step, start_phase

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


def take_steps(tiny_system, data, phase, count):
    step = jax.jit(outer_step, static_argnums=(0, 1))
    state, metrics = start_phase(phase, tiny_system.links), None
    for _ in range(count):
        state, metrics = step(
            tiny_system.system, phase, tiny_system.agents, data, state, key=jax.random.key(0)
        )
    return state, metrics


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_only_outer_links_move_unless_asked(tiny_system, data):
    state, metrics = take_steps(tiny_system, data, PHASE, 3)
    assert same(state.links["inner"], tiny_system.links["inner"])
    for name, params in state.links["outer"].items():
        assert not same(params, tiny_system.links["outer"][name]), name
        assert metrics["link_grad_norm"][name] > 0
    both, _ = take_steps(tiny_system, data, dataclasses.replace(PHASE, train_inner_links=True), 3)
    assert not same(both.links["inner"], tiny_system.links["inner"])


def test_the_loss_is_that_of_the_last_round_unless_weights_say_otherwise(tiny_system, data):
    def loss(**options):
        return outer_loss(
            tiny_system.system,
            tiny_system.agents,
            tiny_system.links,
            data,
            rounds=2,
            teacher_forced=False,
            **options,
        )

    last, details = loss()
    by_round = details["loss"]["solver"]
    np.testing.assert_allclose(last, by_round[-1], rtol=1e-6)
    weighted, _ = loss(round_weights=(3.0, 1.0))
    np.testing.assert_allclose(weighted, (3 * by_round[0] + by_round[1]) / 4, rtol=1e-6)
    with_texts, _ = loss(role_text_weight=0.5)
    texts = np.mean([np.mean(value) for value in details["loss"].values()])
    np.testing.assert_allclose(with_texts, last + 0.5 * texts, rtol=1e-5)


def test_training_lowers_the_loss_on_its_own_items(tiny_system, data):
    phase = dataclasses.replace(
        PHASE,
        steps=40,
        batch_size=3,
        learning_rate=3e-3,
        latents="teacher_forced",
        role_text_weight=1.0,
    )
    _, first = take_steps(tiny_system, data, phase, 1)
    _, last = take_steps(tiny_system, data, phase, 40)
    assert last["loss"] < first["loss"] - 0.1


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
    original, calls = driver.CheckpointStore.save, []

    def save_then_die(store, done, state):
        original(store, done, state)
        calls.append(done)
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(driver.CheckpointStore, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_system, data, broken)
    monkeypatch.setattr(driver.CheckpointStore, "save", original)
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
