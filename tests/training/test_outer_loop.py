"""Phases of the outer loop: interrupted, resumed, damaged, diverged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal

import jax
import numpy as np
import pytest
from systems import QUESTIONS, build_pattern

from rmas_jax.checkpoints import CheckpointStore
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.rounds.stages import Targets
from rmas_jax.team import Team
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.outer import loop as outer_loop
from rmas_jax.training.outer.loop import DivergedError, largest_loss, run_phase

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
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def data(tiny):
    rng = np.random.default_rng(5)
    targets = {
        role: Targets(
            ids=rng.integers(0, 37, (3, 3, 4)).astype(np.int32), valid=np.ones((3, 3, 4), bool)
        )
        for role in tiny.agents
    }
    return TrainingData(prompts=tiny.prompts(QUESTIONS), targets=targets)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def tiny_team(tiny):
    return Team(tiny.system, tiny.agents, {}, {}, {})


def run(tiny, data, directory, phase=PHASE, key=None, validation=None, **options):
    links = jax.tree.map(np.asarray, tiny.links)
    return run_phase(
        tiny_team(tiny),
        jax.tree.map(jax.numpy.asarray, links),
        data,
        data if validation is None else validation,
        dataclasses.replace(OUTER, **options),
        phase,
        key=jax.random.key(0) if key is None else key,
        directory=directory / "checkpoints",
        curves=Curves(directory / "metrics.jsonl"),
        progress=False,
    )


def test_an_interrupted_phase_resumes_to_the_same_bits(tiny, data, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    links = run(tiny, data, whole)
    original, calls = outer_loop.CheckpointStore.save, []

    def save_then_die(store, done, state, **options):
        original(store, done, state, **options)
        calls.append(done)
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(outer_loop.CheckpointStore, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, data, broken)
    monkeypatch.setattr(outer_loop.CheckpointStore, "save", original)
    resumed = run(tiny, data, broken)
    assert calls == [2, 3, 4]  # after 3 steps it is validated
    assert same(links, resumed)
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["series"] == "tiny"]
    assert steps == list(range(PHASE.steps))  # nothing twice, nothing lost


def test_sigterm_ends_the_phase_after_the_step_and_the_same_call_goes_on(
    tiny, data, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    links = run(tiny, data, whole)
    original = outer_loop.put_batch

    def ask_to_end(batch, mesh):
        ask_to_end.steps += 1
        if ask_to_end.steps == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(batch, mesh)

    ask_to_end.steps = 0
    monkeypatch.setattr(outer_loop, "put_batch", ask_to_end)
    before = signal.getsignal(signal.SIGTERM)
    with (
        sigterm_noted(),
        pytest.raises(PreemptedError, match=r"stopped after step 4 of 6 and is saved in .*stopped"),
    ):
        run(tiny, data, stopped)
    assert signal.getsignal(signal.SIGTERM) is before
    with CheckpointStore(stopped / "checkpoints", keep=2) as store:
        assert store.steps()[-1] == 5
    assert same(links, run(tiny, data, stopped))


def test_another_key_or_other_agents_do_not_go_on_from_a_phase(tiny, data, tmp_path):
    run(tiny, data, tmp_path)
    record = json.loads((tmp_path / "checkpoints" / "record.json").read_text())
    assert record["made_with"] == {"key": [0, 0], "agents": {}}
    assert sorted(record["validation_loss"]) == ["3", "6"]
    with pytest.raises(ValueError, match=r"made with key=\[0, 0\], this run has \[0, 1\]"):
        run(tiny, data, tmp_path, key=jax.random.key(1))


def test_a_damaged_newest_checkpoint_falls_back(tiny, data, tmp_path, caplog):
    whole = run(tiny, data, tmp_path)
    newest = tmp_path / "checkpoints" / "6"
    files = [file for file in newest.rglob("*") if file.is_file() and file.stat().st_size > 0]
    for file in files:
        file.write_bytes(b"damaged")
    again = run(tiny, data, tmp_path)
    assert "checkpoint 6 cannot be read" in caplog.text
    assert same(whole, again)


def test_a_loss_that_is_not_a_number_stops_the_run(tiny, data, tmp_path):
    phase = dataclasses.replace(PHASE, learning_rate=1e30, optimizer="sgd", warmup_steps=0)
    with pytest.raises(DivergedError, match="phase tiny, step 1: loss nan") as caught:
        run(tiny, data, tmp_path, phase)
    rows = Batches(data, batch_size=2, key=jax.random.key(0)).rows(1).tolist()
    assert f"rows {rows} of" in str(caught.value)
    assert str(caught.value).endswith("last good checkpoint: none yet")


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_run(
    tiny, data, tmp_path, monkeypatch, loss
):
    """Validated after the third step, when the second is saved."""
    monkeypatch.setattr(outer_loop, "_validate", lambda *_, **__: {"loss": loss})
    message = rf"phase tiny, step 2: validation loss {loss}; .*: {tmp_path}/checkpoints/2$"
    with pytest.raises(DivergedError, match=message):
        run(tiny, data, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["series"] for row in rows} == {"tiny"}


def test_a_loss_beyond_the_limit_stops_the_run(tiny, data, tmp_path):
    """Unless it is set, the limit is twice the loss of guessing among 37 tokens."""
    phase = dataclasses.replace(PHASE, role_text_weight=0.5)
    assert largest_loss(tiny_team(tiny), phase) == pytest.approx(2 * 1.5 * np.log(37))
    message = r"phase tiny, step 0: loss \d+\.\d+ \(at most 1.0: outer.max_loss\)"
    with pytest.raises(DivergedError, match=message):
        run(tiny, data, tmp_path, max_loss=1.0)


def test_a_phase_may_end_with_its_best_links(tiny, data, tmp_path, monkeypatch):
    """Validated after every step; the second comes out best."""
    folders = [tmp_path / name for name in ("last", "best")]
    losses = itertools.cycle([3.0, 1.0, 2.0, 4.0, 2.0, 2.0])
    monkeypatch.setattr(outer_loop, "_validate", lambda *_, **__: {"loss": next(losses)})
    found = []
    for folder in folders:
        folder.mkdir()
        found.append(run(tiny, data, folder, links=folder.name, validation_every=1))
    last, best = found
    with CheckpointStore(folders[1] / "checkpoints", keep=2) as store:
        assert store.best_step() == 2
        like = outer_loop.compile_step(tiny_team(tiny), PHASE, tiny.links)[0]
        assert same(best, store.restore(2, like).links)
    assert not same(best, last)
    assert same(best, run(tiny, data, folders[1], keep="best"))


def test_curves_tell_losses_and_gradients_by_round(tiny, data, tmp_path):
    run(tiny, data, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training, validation = rows[0], next(row for row in rows if "validation" in row["series"])
    assert training["text_loss/learner"] == [None, pytest.approx(training["loss"], abs=1e-5)]
    assert all(norm > 0 for norm in training["edge_grad_norm/expert->learner"])
    assert training["edge_grad_norm/learner->expert"][1] == 0
    assert training["host_bytes"] > 2**26  # python and jax alone take more
    for role in tiny.agents:
        assert (
            len(validation[f"text_loss/{role}"]) == len(validation[f"text_exact_match/{role}"]) == 2
        )
    assert validation["text_loss/learner"][-1] == pytest.approx(validation["loss"], abs=1e-5)


def test_small_gradients_are_logged_and_what_is_not_finite_is_null():
    metrics = {
        "edge_grad_norm": {"a->b": jax.numpy.array([3e-7, 2.4e-6, np.inf, np.nan], np.float32)},
        "loss": np.float32(1234.5678),
        "host_bytes": 2**33,
    }
    assert outer_loop._flat(metrics) == {
        "edge_grad_norm/a->b": [3e-7, 2.4e-6, None, None],
        "loss": 1234.57,
        "host_bytes": 2**33,
    }


def broken(tiny, role, *, token=None):
    """A system in which a role has NaN in its last norm, or for a token alone."""
    params = tiny.agents[role]
    if token is None:
        changed = {"final_norm": {"weight": params["final_norm"]["weight"] * np.nan}}
    else:
        changed = {"embedding": params["embedding"].at[token].set(np.nan)}
    return dataclasses.replace(tiny, agents=tiny.agents | {role: params | changed})


@pytest.mark.parametrize("role", ["expert", "learner"])
def test_the_agent_and_the_stage_that_are_not_finite_first_are_named(tiny, data, tmp_path, role):
    phase = dataclasses.replace(PHASE, accumulation=2)
    message = f"phase tiny, step 0: loss nan .*; first agent {role}, round 1: latents, loss: NaN"
    with pytest.raises(DivergedError, match=message) as caught:
        run(broken(tiny, role), data, tmp_path, phase)
    assert str(caught.value).endswith("last good checkpoint: none yet")


def test_a_validation_that_is_not_finite_names_agent_stage_and_items(tiny, data, tmp_path):
    """The learner's texts end in its last token, which only the second validated item has."""
    ids = np.where(data.targets["learner"].ids == 36, 35, data.targets["learner"].ids)
    prompts = data.prompts["learner"]
    read = {*prompts.body_ids[prompts.body_valid].tolist(), *prompts.prefix_ids.ravel().tolist()}
    token = next(token for token in range(36, 0, -1) if token not in read)
    ids = np.where(ids == token, min(read), ids)
    learned = data.targets | {"learner": data.targets["learner"].replace(ids=ids)}
    ids = ids.copy()
    ids[1, 0, 0] = token
    held_out = data.targets | {"learner": data.targets["learner"].replace(ids=ids)}
    message = (
        r"phase tiny, step 2: validation: latent rounds: agent learner, round 1: .*\(items 1\)"
    )
    with pytest.raises(DivergedError, match=message) as caught:
        run(
            broken(tiny, "learner", token=token),
            data.replace(targets=learned),
            tmp_path,
            validation=data.replace(targets=held_out),
        )
    assert str(caught.value).endswith(f"{tmp_path}/checkpoints/2")


def test_links_that_are_not_finite_are_not_saved(tiny, data, tmp_path):
    """A step's loss is that of the links before it."""
    phase = dataclasses.replace(
        PHASE, learning_rate=3e38, optimizer="adamw(weight_decay=9.0)", warmup_steps=0
    )
    message = "step 0: after it, not finite: .*outer link expert->learner.*: none yet$"
    with pytest.raises(DivergedError, match=message):
        run(tiny, data, tmp_path, phase, checkpoint_every=1)
