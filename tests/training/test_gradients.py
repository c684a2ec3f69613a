"""Gradients through every round, link and frozen agent against torch autograd.

`test_recursion` holds them to finite differences, in float64.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference
from torch_reference import LATENT_STEPS, QUESTIONS, Twins, build_twins, links_of

from rmas_jax.config import PhaseConfig
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, crossing_probes, run_rounds
from rmas_jax.rounds.supervision import Supervision, Targets
from rmas_jax.topology import edge_name
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.outer.step import outer_step, start_phase

ROUNDS = 2
# Of the norm of a gradient. Measured: 2e-4 at most; where torch's gradient stops between the
# rounds, 0.18 at least.
TOLERANCE = 1e-3


def texts_of(vocabulary: Mapping[str, int]) -> dict[str, list[list[list[int]]]]:
    """Role -> per question, per round: tokens; ragged, and never shorter than the thoughts."""
    rng = np.random.default_rng(0)
    return {
        role: [
            [rng.integers(0, size, LATENT_STEPS + (i + r) % 3).tolist() for r in range(ROUNDS)]
            for i in range(len(QUESTIONS))
        ]
        for role, size in vocabulary.items()
    }


def targets_of(texts: Mapping[str, list[list[list[int]]]]) -> dict[str, Targets]:
    """Texts as arrays, padded on the right."""
    targets = {}
    for role, rows in texts.items():
        width = max(len(text) for row in rows for text in row)
        ids = [[text + [0] * (width - len(text)) for text in row] for row in rows]
        valid = [[[i < len(text) for i in range(width)] for text in row] for row in rows]
        targets[role] = Targets(ids=np.array(ids, np.int32), valid=np.array(valid))
    return targets


def zero_probes(system: Any) -> dict[str, jax.Array]:
    """By edge: what is added to what crosses it in each round."""
    return crossing_probes(system, rounds=ROUNDS, batch=len(QUESTIONS))


@functools.partial(jax.jit, static_argnames="teacher_forced")
@jax.value_and_grad
def loss_and_gradients(trained, system, agents, prompts, targets, *, teacher_forced):
    """The answer's mean loss in the last round; gradients of (links, probes)."""
    links, probes = trained
    out = run_rounds(
        system,
        agents,
        LatentChannel(system, links),
        prompts,
        Unroll(rounds=ROUNDS),
        Supervision(targets, teacher_forced=teacher_forced),
        probes=probes,
    )
    return out.scores[system.topology.answerer].loss[-1].mean()


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Function from a pattern to its `Twins`; each is built once."""
    return functools.cache(lambda pattern: build_twins(pattern, tmp_path_factory.mktemp(pattern)))


def data_of(twins: Twins, *, roles: Sequence[str]) -> tuple[TrainingData, Any]:
    """Questions and texts as arrays, and the texts as tokens."""
    texts = texts_of({role: len(twins.ours.members[role].tokenizer) for role in roles})
    return TrainingData(twins.ours.encode(QUESTIONS), targets_of(texts)), texts


def torch_gradients(twins: Twins, texts: Any, *, teacher_forced: bool) -> tuple[float, Any, Any]:
    """The loss, its gradients of all links, and those of all crossings [R, B, M, D'] by edge."""
    team, answerer = twins.torch, twins.torch.topology.answerer
    for link in (*team.inner.values(), *team.outer.values()):
        link.zero_grad()
    total, crossings = 0.0, jax.tree.map(np.array, zero_probes(twins.ours.system))
    for i, question in enumerate(QUESTIONS):
        forced = {role: rows[i] for role, rows in texts.items()} if teacher_forced else None
        rounds = reference.run_rounds(team, question, rounds=ROUNDS, texts=forced)
        for sent in rounds.sent:
            for vectors in sent.values():
                vectors.retain_grad()
        loss = reference.text_loss(
            team.models[answerer], rounds.prompts[-1], texts[answerer][i][-1]
        ) / len(QUESTIONS)
        loss.backward()
        total += loss.item()
        for r, sent in enumerate(rounds.sent):
            for edge, vectors in sent.items():
                if vectors.grad is not None:
                    crossings[edge_name(edge)][r, i] = vectors.grad
    return total, links_of(team, twins.ours, gradients=True), crossings


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))


def error(ours: Any, theirs: Any) -> float:
    """Of the norm of theirs."""
    return norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), ours, theirs)) / norm(
        theirs
    )


def assert_same_links(ours: Any, theirs: Any):
    for part in ("inner", "outer"):
        for name, theirs_of in getattr(theirs, part).items():
            assert error(getattr(ours, part)[name], theirs_of) < TOLERANCE, name


@pytest.mark.parametrize(
    ("pattern", "mode"), [("mixture", "teacher_forced"), ("deliberation", "on_policy")]
)
def test_every_link_and_every_crossing_agrees_with_torch(twins, pattern, mode):
    pair, teacher_forced = twins(pattern), mode == "teacher_forced"
    system, topology = pair.ours.system, pair.torch.topology
    roles = topology.order if teacher_forced else [topology.answerer]
    data, texts = data_of(pair, roles=roles)

    def gradients(links):
        return loss_and_gradients(
            (links, zero_probes(system)),
            system,
            pair.ours.agents,
            data.prompts,
            data.targets,
            teacher_forced=teacher_forced,
        )

    loss, (links, crossings) = gradients(pair.links)
    their_loss, their_links, their_crossings = torch_gradients(
        pair, texts, teacher_forced=teacher_forced
    )
    np.testing.assert_allclose(loss, their_loss, rtol=1e-5)
    assert_same_links(links, their_links)
    feedback = [edge_name(edge) for edge in topology.feedback_edges]
    for name, by_round in their_crossings.items():
        for r in range(ROUNDS):
            if name in feedback and r == ROUNDS - 1:
                assert norm(crossings[name][r]) == norm(by_round[r]) == 0  # it has no receiver
            else:
                assert error(crossings[name][r], by_round[r]) < TOLERANCE, (name, r)

    # The last answer reaches the first link of the first round through the feedback alone.
    first = edge_name((topology.order[0], topology.answerer))
    cut = {name: jax.tree.map(jnp.zeros_like, pair.links.outer[name]) for name in feedback}
    _, (_, without) = gradients(pair.links.replace(outer=pair.links.outer | cut))
    assert norm(crossings[first][0]) > 0 and norm(without[first][0]) == 0
    assert norm(without[first][1]) > 0

    # A control: the tolerance notices when torch's gradient stops between the rounds.
    with contextlib.ExitStack() as stack:
        for edge in topology.feedback_edges:
            stack.enter_context(pair.torch.outer[edge].register_forward_pre_hook(stop_gradient))
        _, stopped, _ = torch_gradients(pair, texts, teacher_forced=teacher_forced)
    assert error(stopped.outer[first], their_links.outer[first]) > 100 * TOLERANCE


def stop_gradient(_, inputs):
    return tuple(x.detach() for x in inputs)


def test_a_step_of_training_follows_these_gradients_and_leaves_the_agents(twins):
    """Plain gradient descent with a rate of 1: what a link loses is its gradient."""
    pair = twins("sequential")
    data, texts = data_of(pair, roles=["solver"])
    phase = PhaseConfig(
        name="plain",
        latents="on_policy",
        rounds=ROUNDS,
        steps=1,
        batch_size=len(QUESTIONS),
        optimizer="sgd",
        learning_rate=1.0,
        warmup_steps=0,
        max_grad_norm=1e6,
        train_inner_links=True,
    )
    agents = jax.tree.map(np.array, pair.ours.agents)
    state = start_phase(phase, jax.tree.map(jnp.copy, pair.links))
    step = jax.jit(outer_step, static_argnums=(0, 1), donate_argnums=4)
    state, metrics = step(pair.ours.system, phase, pair.ours.agents, data, state)
    loss, links, _ = torch_gradients(pair, texts, teacher_forced=False)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_same_links(jax.tree.map(lambda a, b: a - b, pair.links, state.params), links)
    jax.tree.map(np.testing.assert_array_equal, pair.ours.agents, agents)  # bit for bit
