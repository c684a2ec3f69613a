"""What a turn leaves out changes nothing of what is asked for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from systems import LATENT_STEPS, QUESTIONS, build_pattern, build_tiny_system

from rmas_jax.prompts import encode_stage
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, listen, run_rounds
from rmas_jax.rounds.stages import arrivals, begin, scored_turn
from rmas_jax.rounds.supervision import Supervision, Targets
from rmas_jax.rounds.trace import trace_rounds

ROUNDS, WIDTH = 3, LATENT_STEPS + 2
ANSWERER = "learner"
LAST, FIRST_AND_LAST = (False, False, True), (True, False, True)


@pytest.fixture(scope="module")
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def targets(tiny):
    random = np.random.default_rng(3)
    shape = (len(QUESTIONS), ROUNDS, WIDTH)
    lengths = random.integers(1, WIDTH + 1, shape[:2])
    return {
        role: Targets(
            ids=random.integers(0, 37, shape).astype(np.int32),
            valid=np.arange(WIDTH) < lengths[..., None],
        )
        for role in tiny.agents
    }


@pytest.mark.parametrize(
    "run",
    [
        lambda *args: run_rounds(*args, Unroll(rounds=2)),
        lambda *args: jax.jit(listen, static_argnums=0)(*args, rounds=2),
        lambda *args: trace_rounds(*args, rounds=1),
    ],
    ids=["run_rounds", "listen", "trace_rounds"],
)
@pytest.mark.parametrize(("steps", "width"), [(2, 4), (2, 1), (2, 0), (0, 1)])
def test_prompts_with_slots_of_another_width_are_refused(run, steps, width):
    """A gather in place of this would read vectors 1, 2, 2, 2 for four slots."""
    tiny = build_tiny_system(latent_steps=steps)
    channel, prompts = LatentChannel(tiny.system, tiny.links), tiny.prompts()
    solver = encode_stage(tiny.tokenizer, tiny.role_prompts["solver"], QUESTIONS, slot_width=width)
    words = rf"'solver'.*slots must be {steps} wide \(latent_steps\), {steps} .*got {width}: "
    with pytest.raises(ValueError, match=words):
        run(tiny.system, tiny.agents, channel, prompts | {"solver": solver})


def gradient_of(tiny, targets, *, remat=False, **options):
    """Function from weights of rounds [R] to the gradient of all links, and the answerer's score
    [R, B].
    """

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(links, weights):
        out = run_rounds(
            tiny.system,
            tiny.agents,
            LatentChannel(tiny.system, links),
            tiny.prompts(),
            Unroll(rounds=ROUNDS, remat=remat),
            Supervision(targets, **options),
        )
        score = out.scores[ANSWERER]
        return (score.loss.mean(1) * weights).sum(), score

    return lambda weights: gradient(tiny.links, jnp.asarray(weights, jnp.float32))


@pytest.fixture(scope="module")
def gradient_of_all(tiny, targets):
    """Function from how thoughts are made to `gradient_of` with all texts and losses."""
    return functools.cache(lambda **made: gradient_of(tiny, targets, **made))


@pytest.mark.parametrize(
    ("rounds", "options"),
    [
        (LAST, {"teacher_forced": True, "rollout_feedback": True}),
        (FIRST_AND_LAST, {"remat": True}),
    ],
)
def test_texts_that_have_no_loss_are_not_missed(tiny, targets, gradient_of_all, rounds, options):
    known = targets if options.get("teacher_forced") else {ANSWERER: targets[ANSWERER]}
    made = {name: options[name] for name in options.keys() - {"remat"}}  # recomputes, no more
    of_all = gradient_of_all(**made)
    expected, full = of_all(rounds)
    of_scored = gradient_of(tiny, known, scored=FrozenDict({ANSWERER: rounds}), **options)
    gradient, found = of_scored(rounds)
    at = np.flatnonzero(rounds)
    np.testing.assert_allclose(found.loss[at], full.loss[at], rtol=1e-5)
    np.testing.assert_array_equal(found.exact_match[at], full.exact_match[at])
    assert not np.delete(found.loss, at, axis=0).any()
    assert np.delete(full.loss, at, axis=0).all()
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)
    # The control: the loss of another round has another gradient.
    other, _ = of_all((False, True, False))
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, expected)
    assert max(jax.tree.leaves(gaps)) > 1e-2 * largest


def test_kept_thoughts_are_those_that_were_sent(tiny, targets):
    channel = LatentChannel(tiny.system, tiny.links)

    @jax.jit
    def run(agents, targets):
        unroll, supervision = Unroll(rounds=ROUNDS), Supervision(targets, scored=FrozenDict())
        of = functools.partial(run_rounds, tiny.system, agents, channel, tiny.prompts(), unroll)
        return of(supervision), of(supervision.replace(keep_thoughts=True))

    plain, kept = run(tiny.agents, targets)
    assert plain.thoughts == plain.scores == kept.scores == {}
    assert set(kept.thoughts) == {"expert", ANSWERER}
    sent = jax.vmap(functools.partial(channel.send, ("expert", ANSWERER)))(kept.thoughts["expert"])
    np.testing.assert_allclose(sent, kept.received, rtol=1e-5, atol=1e-5)
    assert np.abs(np.diff(kept.received, axis=0)).max() > 0.05


def test_unread_text_is_not_in_the_program(tiny, targets):
    """Operations of a forward pass, counted by the compiler: fewer where less is asked for."""

    def flops(scored=None):
        def program(links, targets):
            out = run_rounds(
                tiny.system,
                tiny.agents,
                LatentChannel(tiny.system, links),
                tiny.prompts(),
                Unroll(rounds=ROUNDS),
                Supervision(targets, teacher_forced=True, scored=scored),
            )
            return out.received, out.scores

        long = jax.tree.map(lambda x: np.concatenate([x] * 8, axis=-1), targets)
        compiled = jax.jit(program).lower(tiny.links, long).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(FrozenDict({ANSWERER: (True,) * ROUNDS})) < 0.8 * flops()


def test_a_forced_turn_reads_prompt_and_text_in_one_pass(tiny, targets):
    stages = begin(tiny.system, tiny.agents, LatentChannel(tiny.system, tiny.links), tiny.prompts())
    inbox = {
        name: jnp.zeros((len(QUESTIONS), LATENT_STEPS, tiny.system.width(name.split("->")[1])))
        for name in tiny.system.outer
    }
    target = jax.tree.map(lambda x: x[:, 0], targets[ANSWERER])

    def scans(**options):
        def turn(inbox):
            arrived = arrivals(stages, inbox, ANSWERER, index=1)
            return scored_turn(stages, ANSWERER, arrived, target, kind=1, **options)

        return str(jax.make_jaxpr(turn)(inbox)).count(" scan[")

    assert scans(is_forced=True) == scans(is_forced=True, is_scored=False) == 1  # over the layers
    assert scans() == 4  # body, text, thoughts, and the layers of a thought
