import dataclasses
import functools

import flat
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import QUESTIONS, build_pattern

from rmas_jax.config import PhaseConfig
from rmas_jax.planning.hlo import program_cost
from rmas_jax.prompts import TokenRows
from rmas_jax.rounds import supervision
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import crossing_probes, run_rounds
from rmas_jax.rounds.supervision import Targets, token_losses
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.outer.step import (
    outer_loss,
    outer_step,
    phase_supervision,
    phase_unroll,
    start_phase,
)
from rmas_jax.training.phases.step import make_optimizer

PHASE = PhaseConfig(
    name="tiny",
    latents="on_policy",
    rounds=2,
    steps=6,
    batch_size=2,
    learning_rate=1e-3,
    warmup_steps=2,
)
FORCED = dataclasses.replace(PHASE, latents="teacher_forced")


@pytest.fixture(scope="module")
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def items(tiny):
    rng = np.random.default_rng(5)
    targets = {
        role: Targets(
            ids=rng.integers(0, 37, (3, 3, 4)).astype(np.int32), valid=np.ones((3, 3, 4), bool)
        )
        for role in tiny.agents
    }
    return flat.encoded_items(tiny.prompt_tokens(QUESTIONS), targets)


@pytest.fixture(scope="module")
def data(items):
    return items.batch()


def take_steps(tiny, items, phase, count):
    step = jax.jit(outer_step, static_argnums=(0, 1))
    state, metrics = start_phase(phase, tiny.links), None
    batches = Batches(items, batch_size=phase.batch_size, key=jax.random.key(0))
    for i in range(count):
        state, metrics = step(tiny.system, phase, tiny.agents, batches[i], state)
    return state, metrics


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_only_outer_links_move_unless_asked(tiny, items):
    state, metrics = take_steps(tiny, items, PHASE, 3)
    assert same(state.params.inner, tiny.links.inner)
    for name, params in state.params.outer.items():
        assert not same(params, tiny.links.outer[name]), name
        assert metrics["link_grad_norm"][name] > 0
    phase = dataclasses.replace(PHASE, train_inner_links=True, latents="teacher_forced")
    both, _ = take_steps(tiny, items, phase, 3)
    assert not same(both.params.inner, tiny.links.inner)


def test_the_loss_is_that_of_the_last_round_unless_weights_say_otherwise(tiny, data):
    def loss(**options):
        phase = dataclasses.replace(FORCED, **options)
        return outer_loss(tiny.system, phase, tiny.agents, tiny.links, data)

    last, details = loss()
    assert details["loss"].keys() == details["exact_match"].keys() == {"learner"}
    for values in details["loss"]["learner"], details["exact_match"]["learner"]:
        np.testing.assert_array_equal(np.isnan(values), [True, False])  # the first was not read
    np.testing.assert_allclose(last, details["loss"]["learner"][-1], rtol=1e-6)
    weighted, details = loss(round_weights=(3.0, 1.0))
    by_round = details["loss"]["learner"]
    np.testing.assert_allclose(weighted, (3 * by_round[0] + by_round[1]) / 4, rtol=1e-6)
    np.testing.assert_allclose(last, by_round[1], rtol=1e-5)
    with_texts, details = loss(role_text_weight=0.5)
    texts = np.mean([np.mean(value) for value in details["loss"].values()])
    np.testing.assert_allclose(with_texts, last + 0.5 * texts, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 2])
def test_learning_rates(schedule, warmup_steps):
    """Plain gradient descent moves a weight by the rate of the step."""
    phase = dataclasses.replace(
        PHASE, optimizer="sgd", schedule=schedule, warmup_steps=warmup_steps, steps=6
    )
    optimizer, weight, moved = make_optimizer(phase), {"w": jnp.zeros(())}, []
    state = optimizer.init(weight)
    for _ in range(6):
        updates, state = optimizer.update({"w": jnp.array(-1.0)}, state, weight)
        moved.append(float(updates["w"]) / phase.learning_rate)
    rising = [step / warmup_steps for step in range(warmup_steps)]
    left = 6 - warmup_steps
    after_warmup = {
        "constant": [1.0] * left,
        "linear": [1 - step / left for step in range(left)],
        "cosine": [0.5 * (1 + np.cos(np.pi * step / left)) for step in range(left)],
    }
    np.testing.assert_allclose(moved, rising + after_warmup[schedule], atol=1e-6)


def test_what_reaches_each_edge_in_each_round_is_measured(tiny, items, data):
    """Two rounds of two agents: a step's loss depends on three crossings, and not on the fourth."""
    norms = {
        parts: take_steps(tiny, items.rows(np.arange(2)), phase, 1)[1]["edge_grad_norm"]
        for parts in (1, 2)
        for phase in [dataclasses.replace(PHASE, accumulation=parts)]
    }

    def loss(links, probes):
        batch = data.rows(np.arange(2))
        return outer_loss(tiny.system, PHASE, tiny.agents, links, batch, probes=probes)[0]

    probes = crossing_probes(tiny.system, rounds=2, batch=2)
    gradient = jax.jit(jax.grad(loss, argnums=1))(tiny.links, probes)
    for edge, x in gradient.items():
        expected = np.linalg.norm(np.asarray(x).reshape(2, -1), axis=1)
        np.testing.assert_array_equal(expected > 1e-4, [True, edge == "expert->learner"])
        np.testing.assert_allclose(norms[1][edge], expected, rtol=1e-4)
        np.testing.assert_allclose(norms[2][edge], expected, rtol=1e-4)


def test_faults_in_a_part_of_a_batch_are_those_of_the_batch(tiny, items):
    """The second item alone has a token whose embedding is NaN."""
    phase = dataclasses.replace(PHASE, accumulation=2)
    two = items.rows(np.arange(2))
    unread, read = 36, two.texts["learner"]
    ids = np.where(read.ids == unread, 0, read.ids)
    assert not any((p.body_ids == unread).any() for p in two.batch().prompts.values())
    ids[read.starts[two.rounds : -1]] = unread  # the first of each text
    two = dataclasses.replace(two, texts=two.texts | {"learner": TokenRows(ids, read.starts)})
    learner = tiny.agents["learner"]
    table = learner.params["embedding"].at[unread].set(np.nan)
    learner = learner.replace(params=learner.params | {"embedding": table})
    broken = dataclasses.replace(tiny, agents=tiny.agents | {"learner": learner})
    np.testing.assert_array_equal(take_steps(tiny, two, phase, 1)[1]["faults"], 0)
    faults = take_steps(broken, two, phase, 1)[1]["faults"]
    assert faults[-1].max() == 0.5 and faults[0].max() == 0


def test_training_lowers_the_loss_on_its_own_items(tiny, items):
    phase = dataclasses.replace(
        FORCED, steps=40, batch_size=3, learning_rate=3e-3, role_text_weight=1.0
    )
    _, first = take_steps(tiny, items, phase, 1)
    _, last = take_steps(tiny, items, phase, 40)
    assert last["loss"] < first["loss"] - 0.1


def test_parts_of_a_batch_add_up_to_the_batch(tiny, data):
    eight = data.rows(np.arange(8) % 3)
    fresh = {role: _fresh(t, seed=i) for i, (role, t) in enumerate(eight.targets.items())}
    eight = eight.replace(targets=fresh)
    step = jax.jit(outer_step, static_argnums=(0, 1))

    def take(**options):
        phase = dataclasses.replace(
            FORCED, batch_size=8, optimizer="sgd", warmup_steps=0, **options
        )
        state = start_phase(phase, tiny.links)
        state, metrics = step(tiny.system, phase, tiny.agents, eight, state)
        return state.params, metrics

    whole, in_parts = take(), take(accumulation=4)
    for ours, expected in zip(*map(jax.tree.leaves, (in_parts, whole)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=5e-6, atol=1e-6)
    np.testing.assert_allclose(whole[1]["grad_norm"], in_parts[1]["grad_norm"], rtol=1e-5)
    assert whole[1]["grad_norm"] > 1e-2
    part = jax.tree.map(lambda x: x[:2], eight)  # the control: one part is not the batch
    alone = outer_loss(tiny.system, FORCED, tiny.agents, tiny.links, part)[0]
    assert abs(alone - whole[1]["loss"]) > 1e-3


def _fresh(target, *, seed):
    """The target with other tokens in every row."""
    ids = np.random.default_rng(seed).integers(0, 37, target.ids.shape).astype(np.int32)
    return Targets(ids=ids, valid=target.valid)


def test_chunks_of_a_text_give_its_loss_and_gradient(tiny, data, monkeypatch):
    agent = tiny.agents["expert"]
    random = np.random.default_rng(0)
    states = jnp.asarray(random.normal(size=(2, 7, agent.width)), jnp.float32)
    ids = jnp.asarray(random.integers(0, 37, (2, 7)))

    def loss(states, weights):
        losses, hits = token_losses(agent, states, ids)
        return (losses * weights).sum(), (losses, hits)

    weights = jnp.asarray(random.normal(size=(2, 7)), jnp.float32)
    of_chunks = []
    for positions in (7, 3, 1):  # three does not divide seven
        monkeypatch.setattr(supervision, "LOGITS_AT_ONCE", positions * 2 * 37)
        fresh = functools.partial(loss)  # no trace of it is kept
        of_chunks.append(jax.value_and_grad(fresh, has_aux=True)(states, weights))
        scans = str(jax.make_jaxpr(functools.partial(loss))(states, weights)).count("scan[")
        assert scans == (positions < 7)
    for chunked in of_chunks[1:]:
        for ours, expected in zip(*map(jax.tree.leaves, (chunked, of_chunks[0])), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    other = jax.grad(loss, has_aux=True)(states, weights[:, ::-1])[0]  # the control
    assert np.abs(other - of_chunks[0][1]).max() > 1e-2


@pytest.fixture(scope="module")
def gradient_by_link(tiny, data):
    """Function from a phase to (loss by role and round, gradient of all links)."""

    def of(phase):
        @jax.jit
        def value_and_grad(links, data):
            def loss(links):
                return outer_loss(tiny.system, phase, tiny.agents, links, data)

            return jax.value_and_grad(loss, has_aux=True)(links)

        (_, details), gradient = value_and_grad(tiny.links, data)
        return details["loss"], gradient

    return of


def test_truncation_cuts_the_gradient_and_nothing_else(gradient_by_link):
    """The feedback link acts only through later rounds, so one round leaves it without gradient."""
    phases = {k: dataclasses.replace(FORCED, rounds=3, truncate_rounds=k) for k in (None, 2, 1)}
    found = {k: gradient_by_link(phase) for k, phase in phases.items()}
    for losses, _ in found.values():
        for ours, expected in zip(*map(jax.tree.leaves, (losses, found[None][0])), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-6)
    back, forth = "learner->expert", "expert->learner"
    norm = {
        k: {edge: float(optax.tree.norm(g.outer[edge])) for edge in (back, forth)}
        for k, (_, g) in found.items()
    }
    assert norm[1][back] == 0 < norm[1][forth]
    assert 0 < norm[2][back] != pytest.approx(norm[None][back], rel=1e-3)


@pytest.mark.slow
def test_truncated_rollouts_think_the_same_and_pass_less_gradient(gradient_by_link):
    """Three thoughts. What feeds back acts on the first directly, on the others through it; what
    the inner link feeds first acts on the second directly, on the third through it.
    """
    phases = {k: dataclasses.replace(PHASE, truncate_steps=k) for k in (None, 1)}
    found = {k: gradient_by_link(phase) for k, phase in phases.items()}
    for losses, _ in found.values():
        np.testing.assert_allclose(losses["learner"], found[None][0]["learner"], rtol=1e-6)
    for part, name in (("outer", "learner->expert"), ("inner", "expert")):
        norms = [float(optax.tree.norm(getattr(g, part)[name])) for _, g in found.values()]
        assert min(norms) > 1e-2
        assert len({round(norm, 4) for norm in norms}) == 2, (name, norms)


def test_stored_products_give_the_same_gradient_with_fewer_products(tiny, data):
    found = []
    for recomputes in (True, False):
        phase = dataclasses.replace(FORCED, recompute_thoughts=recomputes)

        @jax.jit
        def gradient(links, data, phase=phase):
            return jax.grad(
                lambda links: outer_loss(tiny.system, phase, tiny.agents, links, data)[0]
            )(links)

        program = gradient.lower(tiny.links, data).compile()
        found.append((program(tiny.links, data), program_cost(program.as_text()).flops))
    (expected, recomputed), (ours, stored) = found
    for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert 0 < stored < 0.9 * recomputed


def test_what_a_teacher_forced_answerer_feeds_back(tiny, data, gradient_by_link):
    """A draft shows in the next round, a rollout shows no text, gold shows the last one."""

    @functools.partial(jax.jit, static_argnums=0)
    def received(feedback, targets):
        """What reaches the answerer in round 2."""
        phase = dataclasses.replace(FORCED, feedback=feedback)
        out = run_rounds(
            tiny.system,
            tiny.agents,
            LatentChannel(tiny.system, tiny.links),
            data.prompts,
            phase_unroll(phase),
            phase_supervision(phase, targets, answerer="learner"),
        )
        return out.received[1]

    target = data.targets["learner"]
    ids = target.ids.copy()
    ids[:, 0] = (ids[:, 0] + 5) % 37  # another draft in round 1
    other = {**data.targets, "learner": target.replace(ids=ids)}
    moved = {
        feedback: np.abs(received(feedback, other) - received(feedback, data.targets)).max()
        for feedback in ("draft", "rollout")
    }
    assert moved["draft"] > 1e-2 and moved["rollout"] == 0

    @functools.partial(jax.jit, static_argnums=0)
    def losses(feedback, last):
        batch = data.replace(targets={**data.targets, "learner": target.replace(ids=last)})
        phase = dataclasses.replace(FORCED, feedback=feedback, round_weights=(1.0, 1.0))
        _, details = outer_loss(tiny.system, phase, tiny.agents, tiny.links, batch)
        return details["loss"]["learner"]

    final = np.broadcast_to(target.ids[:, -1:], target.ids.shape)
    np.testing.assert_allclose(losses("gold", target.ids), losses("draft", final), rtol=1e-6)
    assert np.abs(losses("gold", target.ids) - losses("draft", target.ids)).max() > 1e-2
