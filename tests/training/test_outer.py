import dataclasses

import jax
import numpy as np
import pytest
from systems import QUESTIONS

from rmas_jax.config import PhaseConfig
from rmas_jax.recursion import Targets
from rmas_jax.training.batches import Batches, TrainingData
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
    batches = Batches(data, batch_size=phase.batch_size, key=jax.random.key(0))
    for i in range(count):
        state, metrics = step(tiny_system.system, phase, tiny_system.agents, batches[i], state)
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
