"""Rounds with texts to learn from: losses, gradients in float64, right texts."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from systems import CONFIGS, QUESTIONS, naive_text, run_naively

from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, crossing_probes, run_rounds
from rmas_jax.rounds.supervision import Supervision, Targets

ROUNDS = 3
EDGES = ("planner->critic", "critic->solver", "solver->planner")
TEXTS = {  # role -> per question, per round: tokens; ragged, and never shorter than the thoughts
    role: [
        [
            list(np.random.default_rng((i, j, r)).integers(1, 37, 3 + (i + j + r) % 3))
            for r in range(ROUNDS)
        ]
        for j in range(len(QUESTIONS))
    ]
    for i, role in enumerate(CONFIGS)
}


def targets_of(role: str) -> Targets:
    width = max(len(text) for texts in TEXTS[role] for text in texts)
    ids = np.zeros((len(QUESTIONS), ROUNDS, width), np.int32)
    valid = np.zeros(ids.shape, bool)
    for j, texts in enumerate(TEXTS[role]):
        for r, text in enumerate(texts):
            ids[j, r, : len(text)], valid[j, r, : len(text)] = text, True
    return Targets(ids=ids, valid=valid)


@functools.partial(jax.jit, static_argnames=("teacher_forced", "remat"))
@functools.partial(jax.value_and_grad, has_aux=True)
def last_loss(trained, system, agents, prompts, targets, *, teacher_forced, remat=False):
    """The answer's loss in the last round alone; gradients of (links, probes)."""
    links, probes = trained
    out = run_rounds(
        system,
        agents,
        LatentChannel(system, links),
        prompts,
        Unroll(rounds=ROUNDS, remat=remat),
        Supervision(targets, teacher_forced=teacher_forced),
        probes=probes,
    )
    return out.scores[system.topology.answerer].loss[-1].sum(), out


@pytest.fixture(params=["on_policy", "teacher_forced"])
def training(request, tiny_system, float64):
    """Function (trained, remat) -> ((loss, rounds), gradients), what it trains, and the system.

    Rounds are recomputed in the backward pass where the thoughts are a rollout.
    """
    tiny = dataclasses.replace(
        tiny_system, agents=float64(tiny_system.agents), links=float64(tiny_system.links)
    )
    teacher_forced = request.param == "teacher_forced"
    targets = {role: targets_of(role) for role in (CONFIGS if teacher_forced else ["solver"])}
    probes = crossing_probes(tiny.system, rounds=ROUNDS, batch=len(QUESTIONS))

    def evaluate(trained, remat=not teacher_forced):
        return last_loss(
            trained,
            tiny.system,
            tiny.agents,
            tiny.prompts(),
            targets,
            teacher_forced=teacher_forced,
            remat=remat,
        )

    return evaluate, (tiny.links, probes), tiny, teacher_forced


def test_losses_and_gradients_of_the_last_answer(training):
    """All in one test, because compiling this program takes most of its time."""
    evaluate, trained, tiny, teacher_forced = training
    (loss, out), (links, probes) = evaluate(trained)

    received, losses, _ = run_naively(
        tiny, rounds=ROUNDS, texts=TEXTS, teacher_forced=teacher_forced
    )
    assert out.received.dtype == np.float64
    np.testing.assert_allclose(out.received, received, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(out.scores["solver"].loss, losses, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(loss, losses[-1].sum(), rtol=1e-7, atol=1e-7)
    assert set(out.scores) == set(CONFIGS if teacher_forced else ["solver"])

    # Every link is reached, and through every round: the last answer's gradient is zero only in
    # what is fed back after it.
    for path, grad in jax.tree_util.tree_leaves_with_path(links):
        assert np.abs(grad).max() > 1e-6, path
    for name in EDGES:
        assert probes[name].shape == trained[1][name].shape
        reach = np.abs(probes[name]).max(axis=(2, 3))
        expected = [[True], [True], [name != "solver->planner"]]
        np.testing.assert_array_equal(reach > 1e-9, np.tile(expected, len(QUESTIONS)))

    # Each link, and each crossing in each round, by itself: central differences of the loss along
    # a random direction. With steps of 1e-5 their error is below 5e-11 or 1e-7 of the slope.
    at, gradients = jax.tree.map(np.asarray, (trained, (links, probes)))
    rng = np.random.default_rng(0)
    parts = [(kind, name) for kind in vars(links) for name in getattr(links, kind)]
    parts += [(edge, r) for edge in probes for r in range(ROUNDS)]
    for part in parts:
        owner, name = part
        toward = jax.tree.map(np.zeros_like, at)
        moving = (vars(toward[0]) | toward[1])[owner]
        moving[name] = jax.tree.map(lambda x: rng.normal(size=x.shape), moving[name])
        ahead, behind = (
            evaluate(jax.tree.map(lambda x, t, s=step: x + s * t, at, toward))[0][0]
            for step in (1e-5, -1e-5)
        )
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, t: (g * t).sum(), gradients, toward)))
        np.testing.assert_allclose(
            slope, (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-9, err_msg=str(part)
        )
        unheard = part == ("solver->planner", ROUNDS - 1)
        assert (slope == 0) if unheard else (abs(slope) > 1e-7), part  # a missing part would show


@pytest.mark.long
def test_recomputed_rounds_give_the_same_gradients(training):
    evaluate, trained, _, _ = training
    stored, recomputed = (evaluate(trained, remat=remat) for remat in (False, True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), stored, recomputed
    )


def test_right_says_whether_greedy_decoding_writes_the_text(tiny_system):
    """A text that the answerer writes itself is right; with one token changed it is not."""
    tiny = tiny_system
    bodies = run_naively(tiny, rounds=1)[2]
    written = naive_text(tiny.agents["solver"], bodies, 3)
    changed = written.copy()
    changed[1, 1] = (changed[1, 1] + 1) % CONFIGS["solver"].vocab_size
    hidden_change = written.copy()  # where it does not count
    hidden_change[2, 2] = (hidden_change[2, 2] + 1) % CONFIGS["solver"].vocab_size
    valid = np.ones((3, 1, 3), bool)
    valid[2, 0, 2] = False

    @jax.jit
    def right(agents, links, prompts, targets):
        channel, supervision = LatentChannel(tiny.system, links), Supervision(targets)
        out = run_rounds(tiny.system, agents, channel, prompts, Unroll(rounds=1), supervision)
        return out.scores["solver"].exact_match[0]

    def of(ids):
        shown = valid[..., : ids.shape[1]]
        targets = {"solver": Targets(ids=ids[:, None].astype(np.int32), valid=shown)}
        return right(tiny.agents, tiny.links, tiny.prompts(), targets)

    np.testing.assert_array_equal(of(written), [True, True, True])
    np.testing.assert_array_equal(of(changed), [True, False, True])
    np.testing.assert_array_equal(of(hidden_change), [True, True, True])
    np.testing.assert_array_equal(of(changed[:, :1]), [True, True, True])  # texts of one token


def test_bad_arguments_are_named(tiny_system):
    tiny = tiny_system
    channel = LatentChannel(tiny.system, tiny.links)

    def call(rounds, targets):
        unroll, supervision = Unroll(rounds=rounds), Supervision(targets, teacher_forced=True)
        run_rounds(tiny.system, tiny.agents, channel, tiny.prompts(), unroll, supervision)

    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        call(0, {})
    targets = {role: targets_of(role) for role in ("planner", "solver")}
    with pytest.raises(ValueError, match=r"\['critic'\].*latent_steps=3"):
        call(1, targets)
    short = jax.tree.map(lambda x: x[..., :2], targets_of("critic"))
    with pytest.raises(ValueError, match=r"\['critic'\] must have .* got \[2\]"):
        call(1, targets | {"critic": short})
