"""Phases of the outer loop: interrupted, resumed, damaged, diverged, with hooks."""

from __future__ import annotations

import dataclasses
import json
import signal

import flat
import jax
import numpy as np
import pytest
import teams
from systems import QUESTIONS, build_pattern

from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.prompts import TokenRows
from rmas_jax.rounds.supervision import Targets
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.divergence import DivergedError
from rmas_jax.training.hooks import at_end, every, when
from rmas_jax.training.outer.loop import TrainableLinks, run_phase
from rmas_jax.training.phases import loop as phase_loop

PHASE = PhaseConfig(
    name="tiny",
    latents="teacher_forced",  # quicker to compile; the validations are rollouts
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
    return flat.encoded_items(tiny.prompt_tokens(QUESTIONS), targets)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def tiny_team(tiny):
    return tiny.team()


def run(tiny, data, directory, phase=PHASE, *, key=None, validation=None, hooks=(), **options):
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
        hooks=hooks,
        progress=False,
    )


def change_step(monkeypatch, change):
    """Passes the state and the metrics after every step through a function."""
    original = phase_loop.compile_step

    def compile_step(*args):
        state, step = original(*args)
        return state, lambda *args: change(*step(*args))

    monkeypatch.setattr(phase_loop, "compile_step", compile_step)


@pytest.fixture(scope="module")
def whole(tiny, data, tmp_path_factory):
    """The links of a phase that nothing interrupts."""
    return run(tiny, data, tmp_path_factory.mktemp("whole"))


def test_an_interrupted_phase_resumes_to_the_same_bits(tiny, data, whole, tmp_path):
    """Checkpoints are due after steps 2, 4 and 6, validations after 3 and 6; step 5 is lost."""

    def die(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, data, tmp_path, hooks=[every(5, die)])
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as store:
        assert store.steps() == (3, 4)
    assert same(whole, run(tiny, data, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["series"] == "tiny"]
    assert steps == list(range(PHASE.steps))  # nothing twice, nothing lost
    assert {row["loop"] for row in rows} == {"outer"}


def test_sigterm_ends_the_phase_after_the_next_step_and_the_same_call_goes_on(
    tiny, data, whole, tmp_path
):
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    hooks = [
        when(lambda event: event.step == 3, lambda _: signal.raise_signal(signal.SIGTERM)),
        at_end(lambda event: seen.append((event.step, event.is_last))),
    ]
    with (
        sigterm_noted(),
        pytest.raises(PreemptedError, match=rf"stopped after step 4 of 6 and .* in {tmp_path}"),
    ):
        run(tiny, data, tmp_path, hooks=hooks)
    assert seen == [(4, False)]
    assert signal.getsignal(signal.SIGTERM) is before
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as store:
        assert store.steps()[-1] == 5
    assert same(whole, run(tiny, data, tmp_path))


def test_a_hook_of_the_user_finds_what_the_phase_has_written(tiny, data, tmp_path):
    """It comes behind the phase's own, and reads state and metrics of the step."""
    seen = {}

    def note(event):
        assert event.state.step == event.done
        saved = json.loads((tmp_path / "checkpoints" / "record.json").read_text())
        seen[event.done] = (
            event.results["validation"]["loss"] == saved["validation_loss"][str(event.done)],
            event.results["metrics"]["loss"] == pytest.approx(float(event.metrics["loss"])),
        )

    run(tiny, data, tmp_path, hooks=[every(3, note)])
    assert seen == {3: (True, True), 6: (True, True)}
    run(tiny, data, tmp_path, hooks=[every(1, lambda _: pytest.fail("no step is left"))])


def test_another_key_or_other_agents_do_not_go_on_from_a_phase(tiny, data, tmp_path):
    run(tiny, data, tmp_path)
    record = json.loads((tmp_path / "checkpoints" / "record.json").read_text())
    assert record["made_with"] == {"key": [0, 0], "agents": {}}
    assert sorted(record["validation_loss"]) == ["3", "6"]
    with pytest.raises(ValueError, match=r"key must be .* \[0, 0\], got \[0, 1\]"):
        run(tiny, data, tmp_path, key=jax.random.key(1))


def test_a_damaged_newest_checkpoint_falls_back(tiny, data, whole, tmp_path, caplog):
    run(tiny, data, tmp_path)
    newest = tmp_path / "checkpoints" / "6"
    files = [file for file in newest.rglob("*") if file.is_file() and file.stat().st_size > 0]
    for file in files:
        file.write_bytes(b"damaged")
    again = run(tiny, data, tmp_path)
    assert "checkpoint 6 cannot be read" in caplog.text
    assert same(whole, again)


def test_a_loss_that_is_not_a_number_stops_the_run(tiny, data, tmp_path, monkeypatch):
    """At every step it is looked at, though rows are written after the first and the third."""

    def nan_at_the_second(state, metrics):
        return state, metrics | ({"loss": metrics["loss"] * np.nan} if state.step == 2 else {})

    change_step(monkeypatch, nan_at_the_second)
    with pytest.raises(DivergedError, match="phase tiny, step 1: loss nan") as caught:
        run(tiny, data, tmp_path, log_every=5, checkpoint_every=9)
    rows = Batches(data, batch_size=2, key=jax.random.key(0)).rows(1).tolist()
    assert f"rows {rows} of" in str(caught.value)
    assert str(caught.value).endswith("last good checkpoint: none yet")


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_run(
    tiny, data, tmp_path, monkeypatch, loss
):
    """Validated after the third step, when the second is saved."""
    monkeypatch.setattr(TrainableLinks, "validate", lambda *_: {"loss": loss})
    message = rf"phase tiny, step 2: validation loss {loss}; .*: {tmp_path}/checkpoints/2$"
    with pytest.raises(DivergedError, match=message):
        run(tiny, data, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["series"] for row in rows} == {"tiny"}


def test_a_loss_beyond_the_limit_stops_the_run(tiny, data, tmp_path):
    """Unless it is set, the limit is twice the loss of guessing among 37 tokens."""
    phase = dataclasses.replace(PHASE, role_text_weight=0.5)
    assert TrainableLinks(tiny_team(tiny), phase, tiny.links).largest_loss == pytest.approx(
        2 * 1.5 * np.log(37)
    )
    message = r"phase tiny, step 0: loss \d+\.\d+ \(at most 1.0: outer.max_loss\)"
    with pytest.raises(DivergedError, match=message):
        run(tiny, data, tmp_path, max_loss=1.0)


def test_a_phase_may_end_with_its_best_links(tiny, data, tmp_path, monkeypatch):
    """Validated before the first step and after every one; the second comes out best."""
    folders = [tmp_path / name for name in ("last", "best")]
    of_steps = [3.0, 1.0, 2.0, 4.0, 2.0, 2.0]
    losses, found = iter([*of_steps, 2.5, *of_steps]), []
    monkeypatch.setattr(TrainableLinks, "validate", lambda *_: {"loss": next(losses)})
    for folder in folders:
        folder.mkdir()
        found.append(run(tiny, data, folder, keep=folder.name, validation_every=1))
    last, best = found
    with open_checkpoints(folders[1] / "checkpoints", keep=2) as store:
        assert store.best_step() == 2
        like = phase_loop.compile_step(TrainableLinks(tiny_team(tiny), PHASE, tiny.links))[0]
        assert same(best, store.restore(2, like).params)
    assert not same(best, last)
    assert same(best, run(tiny, data, folders[1], keep="best"))


def test_training_that_does_harm_ends_with_the_links_it_began_with(
    tiny, data, tmp_path, monkeypatch
):
    """They are validated once, also if the phase is interrupted before its next checkpoint."""
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(TrainableLinks, "validate", lambda *_: {"loss": next(losses)})

    def crash(event):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run(tiny, data, tmp_path, hooks=[crash], keep="best")
    assert same(run(tiny, data, tmp_path, keep="best"), tiny.links)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = [(row["step"], row["loss"]) for row in rows if "validation" in row["series"]]
    assert validated == [(-1, 1.0), (2, 2.0), (5, 3.0)]


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


def broken(tiny, role, *, token=None):
    """A system in which a role has NaN in its last norm, or for a token alone."""
    agent = teams.broken(tiny.agents[role], token)
    return dataclasses.replace(tiny, agents=tiny.agents | {role: agent})


@pytest.mark.parametrize("role", ["expert", "learner"])
def test_the_agent_and_the_stage_that_are_not_finite_first_are_named(tiny, data, tmp_path, role):
    message = f"phase tiny, step 0: loss nan .*; first agent {role}, round 1: latents, loss: NaN"
    with pytest.raises(DivergedError, match=message) as caught:
        run(broken(tiny, role), data, tmp_path)
    assert str(caught.value).endswith("last good checkpoint: none yet")


def test_a_validation_that_is_not_finite_names_agent_stage_and_items(tiny, data, tmp_path):
    """The learner's texts end in its last token, which only the second validated item has."""
    texts = data.texts["learner"]
    ids = np.where(texts.ids == 36, 35, texts.ids)
    prompts = data.batch().prompts["learner"]
    read = {*prompts.body_ids[prompts.body_valid].tolist(), *prompts.prefix_ids.ravel().tolist()}
    token = next(token for token in range(36, 0, -1) if token not in read)
    ids = np.where(ids == token, min(read), ids)
    learned = data.texts | {"learner": TokenRows(ids, texts.starts)}
    ids = ids.copy()
    ids[texts.starts[data.rounds]] = token  # the first of item 1
    held_out = data.texts | {"learner": TokenRows(ids, texts.starts)}
    message = (
        r"phase tiny, step 2: validation: latent rounds: agent learner, round 1: .*\(items 1\)"
    )
    with pytest.raises(DivergedError, match=message) as caught:
        run(
            broken(tiny, "learner", token=token),
            dataclasses.replace(data, texts=learned),
            tmp_path,
            validation=dataclasses.replace(data, texts=held_out),
        )
    assert str(caught.value).endswith(f"{tmp_path}/checkpoints/2")


def test_links_that_are_not_finite_are_not_saved(tiny, data, tmp_path, monkeypatch):
    """A step's loss is that of the links before it."""
    change_step(
        monkeypatch,
        lambda state, metrics: (
            state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params)),
            metrics,
        ),
    )
    message = "step 0: after it, not finite: .*outer link expert->learner.*: none yet$"
    with pytest.raises(DivergedError, match=message):
        run(tiny, data, tmp_path, checkpoint_every=1)
