"""On a GPU or TPU: the numbers of torch and of the CPU, and the precision that the code states."""

from __future__ import annotations

import dataclasses
import functools

import flat
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import CASES
from systems import QUESTIONS, build_pattern, random_link

from rmas_jax.config import PhaseConfig
from rmas_jax.links import INNER, OUTER, LinkConfig, apply_link
from rmas_jax.models import load_pretrained
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, run_rounds, solve
from rmas_jax.rounds.supervision import Targets
from rmas_jax.training.outer.step import outer_step, start_phase

pytestmark = pytest.mark.accelerator
PHASE = PhaseConfig(
    name="tiny",
    latents="on_policy",
    rounds=2,
    steps=6,
    batch_size=3,
    learning_rate=1e-3,
    warmup_steps=2,
)


@pytest.fixture(autouse=True, scope="module")
def as_users_compile():
    """With all optimisations, and float32 products in float32 unless a test says otherwise."""
    if jax.default_backend() == "cpu":
        pytest.skip("needs a GPU or a TPU")
    jax.config.update("jax_disable_most_optimizations", False)
    with jax.default_matmul_precision("highest"):
        yield
    jax.config.update("jax_disable_most_optimizations", True)  # as in conftest.py


def on_cpu(function, *inputs, **options):
    """The results of a function on the CPU, as numpy arrays."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return jax.tree.map(np.asarray, function(*jax.device_put(inputs, cpu), **options))


def relative(ours, expected):
    """The difference of arrays over the norm of the expected one."""
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(ours, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case", CASES)
def test_decoders_equal_torch(oracle, case):
    import torch

    ids = np.random.default_rng(0).integers(1, 61, (3, 11))
    model, params = load_pretrained(oracle(case).directory)

    @jax.jit
    def forward(params, ids):
        embeds = model.apply({"params": params}, ids, method="embed")
        hidden = model.apply({"params": params}, embeds, jnp.ones(ids.shape, bool))
        return model.apply({"params": params}, hidden, method="unembed")

    with torch.no_grad():
        expected = oracle(case).model(torch.tensor(ids)).logits.numpy()
    assert relative(forward(params, ids), expected) < 1e-4
    assert relative(forward(params, np.roll(ids, 1, axis=1)), expected) > 1e-2  # the control


@pytest.mark.parametrize("kind", [INNER, OUTER])
def test_links_are_in_float32_at_any_default(kind):
    config = LinkConfig(kind, "ln_res", 64, 64 if kind == INNER else 96)
    params = random_link(config, seed=1)
    vectors = jax.random.normal(jax.random.key(0), (5, 64))
    apply = functools.partial(apply_link, config)
    with jax.default_matmul_precision("bfloat16"):
        ours = jax.jit(apply)(params, vectors)
        rounded = jax.jit(lambda params, x: x @ params["proj1"]["kernel"])(params, vectors)
    assert relative(ours, on_cpu(apply, params, vectors)) < 1e-5
    product = np.asarray(vectors, np.float64) @ np.asarray(params["proj1"]["kernel"], np.float64)
    assert relative(rounded, product) > 1e-4  # the control: this default does round


@pytest.mark.parametrize("pattern", ["sequential", "mixture", "distillation", "deliberation"])
def test_rounds_and_answers_equal_those_of_the_cpu(pattern):
    tiny = build_pattern(pattern)

    @functools.partial(jax.jit, static_argnums=0)
    def both(system, agents, links, prompts):
        channel = LatentChannel(system, links)
        rounds = run_rounds(system, agents, channel, prompts, Unroll(rounds=3))
        text = solve(system, agents, channel, prompts, rounds=3, end_tokens=(1000,), max_tokens=6)
        return rounds.received, text.tokens

    inputs = tiny.agents, tiny.links, tiny.prompts()
    received, tokens = both(tiny.system, *inputs)
    expected, written = on_cpu(functools.partial(both, tiny.system), *inputs)
    assert relative(received, expected) < 1e-3
    assert relative(received[0], expected[1]) > 1e-2  # the control: another round
    np.testing.assert_array_equal(tokens, written)


@pytest.mark.parametrize("latents", ["on_policy", "teacher_forced"])
def test_a_training_step_equals_that_of_the_cpu(latents):
    tiny, phase = build_pattern("sequential"), dataclasses.replace(PHASE, latents=latents)
    rng = np.random.default_rng(5)
    targets = {
        role: Targets(
            ids=rng.integers(0, 37, (3, 3, 4)).astype(np.int32), valid=np.ones((3, 3, 4), bool)
        )
        for role in tiny.agents
    }
    data = flat.encoded_items(tiny.prompt_tokens(QUESTIONS), targets).batch()
    step = jax.jit(functools.partial(outer_step, tiny.system, phase))
    inputs = tiny.agents, data, start_phase(phase, tiny.links)
    _, metrics = step(*inputs)
    _, expected = on_cpu(step, *inputs)
    assert relative(metrics["loss"], expected["loss"]) < 1e-4
    for name, norm in expected["link_grad_norm"].items():
        assert relative(metrics["link_grad_norm"][name], norm) < 1e-2, name


def test_in_bfloat16_a_batch_of_one_equals_a_batch_of_many():
    tiny = build_pattern("sequential")
    agents = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.agents)

    @functools.partial(jax.jit, static_argnums=0)
    def received(system, agents, links, prompts):
        channel = LatentChannel(system, links)
        return run_rounds(system, agents, channel, prompts, Unroll(rounds=2)).received

    prompts = tiny.prompts()
    together = received(tiny.system, agents, tiny.links, prompts)
    for row in range(len(QUESTIONS)):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], prompts)
        alone = received(tiny.system, agents, tiny.links, one)
        others = together[0, (row + 1) % len(QUESTIONS)]
        gap = relative(np.float32(together[0, row]), np.float32(alone[0, 0]))
        assert gap < 0.05
        assert relative(np.float32(others), np.float32(alone[0, 0])) > 2 * gap
