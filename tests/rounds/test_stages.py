"""What a turn leaves out changes nothing of what is asked for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import LATENT_STEPS, QUESTIONS, build_pattern

from rmas_jax.prompts import encode_stage
from rmas_jax.rounds.channels import latent_channel
from rmas_jax.rounds.recursion import run_rounds
from rmas_jax.rounds.stages import Targets

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


@pytest.mark.parametrize("width", [0, LATENT_STEPS - 1, LATENT_STEPS + 1])
def test_prompts_with_slots_of_another_width_are_refused(tiny, width):
    prompts = {
        role: encode_stage(tiny.tokenizer, prompt, QUESTIONS, slot_width=width)
        for role, prompt in tiny.role_prompts.items()
    }
    channel = latent_channel(tiny.system, tiny.links)
    for rounds in (1, 2):
        with pytest.raises(ValueError, match=rf"and {LATENT_STEPS} reach them.*slot_width="):
            jax.eval_shape(
                lambda agents, prompts, rounds=rounds: run_rounds(
                    tiny.system, agents, channel, prompts, rounds=rounds
                ),
                tiny.agents,
                prompts,
            )


def gradient_of(tiny, targets, **options):
    """Function from weights of rounds [R] to the gradient of all links, and the answerer's losses
    [R, B], its right texts [R, B] and all thoughts.
    """

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(links, weights):
        out = run_rounds(
            tiny.system,
            tiny.agents,
            latent_channel(tiny.system, links),
            tiny.prompts(),
            rounds=ROUNDS,
            targets=targets,
            **options,
        )
        loss = (out.losses[ANSWERER].mean(1) * weights).sum()
        return loss, (out.losses[ANSWERER], out.exact_match[ANSWERER], out.thoughts)

    return lambda weights: gradient(tiny.links, jnp.asarray(weights, jnp.float32))


@pytest.mark.parametrize(
    ("rounds", "options"),
    [
        (LAST, {"teacher_forced": True}),
        (LAST, {"teacher_forced": True, "rollout_feedback": True}),
        (FIRST_AND_LAST, {}),
        (LAST, {"remat": True}),
    ],
)
def test_texts_that_have_no_loss_are_not_missed(tiny, targets, rounds, options):
    known = targets if options.get("teacher_forced") else {ANSWERER: targets[ANSWERER]}
    of_all = gradient_of(tiny, targets, **options)
    expected, (full, full_right, _) = of_all(rounds)
    of_scored = gradient_of(tiny, known, scored={ANSWERER: rounds}, **options)
    gradient, (found, exact_match, thoughts) = of_scored(rounds)
    assert thoughts == {}
    at = np.flatnonzero(rounds)
    np.testing.assert_allclose(found[at], full[at], rtol=1e-5)
    np.testing.assert_array_equal(exact_match[at], full_right[at])
    assert not np.delete(found, at, axis=0).any() and np.delete(full, at, axis=0).all()
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest)
    # The control: the loss of another round has another gradient.
    other, _ = of_all((False, True, False))
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, expected)
    assert max(jax.tree.leaves(gaps)) > 1e-2 * largest


def test_unread_text_is_not_in_the_program(tiny, targets):
    """Operations of a forward pass, counted by the compiler: fewer where less is asked for."""

    def flops(**options):
        def program(links, targets):
            channel = latent_channel(tiny.system, links)
            out = run_rounds(
                tiny.system,
                tiny.agents,
                channel,
                tiny.prompts(),
                rounds=ROUNDS,
                targets=targets,
                teacher_forced=True,
                **options,
            )
            return out.received, out.losses

        long = jax.tree.map(lambda x: np.concatenate([x] * 8, axis=-1), targets)
        compiled = jax.jit(program).lower(tiny.links, long).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(scored={ANSWERER: (True,) * ROUNDS}) < 0.8 * flops()
