"""How weights meet activations changes where numbers are computed, not the numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_config
from flax.traverse_util import flatten_dict, unflatten_dict
from placed import placed
from systems import random_params

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body, read_prefix
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.thinking import think
from rmas_jax.config import SweepConfig
from rmas_jax.models import Decoder, DecoderConfig, abstract_agent, config_from_hf
from rmas_jax.models.cache import cached_heads
from rmas_jax.models.weights import weight_table
from rmas_jax.partition import POLICIES, Partition, Policies
from rmas_jax.planning.hlo import program_cost
from rmas_jax.rounds.supervision import Targets, read_text, score_text
from rmas_jax.sharding import batch_sharding, make_mesh, put_batch, put_whole

BATCH, PROMPT, SLOTS, TEXT, STEPS = 8, 5, 2, 4, 3
DENSE = DecoderConfig(
    model_type="qwen3",
    vocab_size=64,
    width=32,
    ffn_width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=100.0,
    qk_norm=True,
    qkv_bias=True,
    tie_embeddings=True,
)
ODD = dataclasses.replace(  # no dimension divides
    DENSE, vocab_size=61, width=33, ffn_width=45, num_heads=3, num_kv_heads=3, tie_embeddings=False
)
HYBRID = dataclasses.replace(config_from_hf(draw_config(6)), vocab_size=64)
CONFIGS = {"dense": DENSE, "odd": ODD, "hybrid": HYBRID}
ALIKE = {policy: Policies(*(policy,) * 4) for policy in POLICIES}
MIXED = {"mixed": Policies(reading="replicate", thinking="stay", writing="gather")}


def mesh_of(*sizes):
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def batch_of(config, seed=0):
    random = np.random.default_rng(seed)

    def texts(width):
        ids = random.integers(0, config.vocab_size, (BATCH, width)).astype(np.int32)
        lengths = random.integers(1, width + 1, (BATCH, 1))
        return ids, np.arange(width) >= width - lengths

    text, there = texts(TEXT)
    received = random.normal(size=(BATCH, SLOTS, config.width)).astype(np.float32)
    return texts(PROMPT), texts(PROMPT), received, (text, there[:, ::-1])


def turn(agent, link, received, batch, sweeps=None):
    """A turn: reads, thinks and scores a text; a scalar that depends on all of it."""
    prefix, (ids, valid), _, text = batch
    ids = jnp.concatenate([jnp.zeros((BATCH, SLOTS), jnp.int32), ids], axis=1)
    valid = jnp.concatenate([jnp.ones((BATCH, SLOTS), bool), valid], axis=1)
    index = (*range(SLOTS), *(-1,) * PROMPT)
    prompt = PromptInput(read_prefix(agent, *prefix), ids, valid, received, index)
    hidden, cache = read_body(agent, prompt)

    def feed(hidden):
        return jnp.tanh(hidden @ link)

    thoughts = think(agent, feed, hidden, cache, steps=STEPS, sweeps=sweeps).thoughts
    target = Targets(*text)
    states = read_text(agent, target, hidden[:, None], cache)
    score = score_text(agent, target, states)
    spoken = speak(agent, hidden, cache, end_tokens=(), max_tokens=TEXT)
    return score.loss.mean() + 0.1 * jnp.square(thoughts).mean(), (thoughts, spoken.tokens)


@pytest.fixture(scope="module")
def agents():
    # Smaller weights than elsewhere: a rollout magnifies rounding errors.
    def params(config):
        return jax.tree.map(lambda x: 0.5 * x, random_params(config, 1))

    return {name: Agent(Decoder(config), params(config)) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def alone(agents):
    """Tokens, loss, thoughts and gradients of each agent on one device."""
    return {name: run(agent) for name, agent in agents.items()}


def run(agent, mesh=None, seed=0, sweeps=None):
    batch = batch_of(agent.config, seed)
    link = np.random.default_rng(2).normal(size=(agent.width,) * 2).astype(np.float32) * 0.1
    of = functools.partial(turn, sweeps=sweeps)
    of = jax.jit(jax.value_and_grad(of, argnums=(1, 2), has_aux=True))
    batch = put_batch(batch, mesh)
    (loss, (thoughts, tokens)), gradients = of(agent, put_whole(link, mesh), batch[2], batch)
    return jax.device_get((tokens, (loss, thoughts, *gradients)))


def differences(ours, expected):
    """Whether tokens are the same, and the largest difference relative to the largest number."""
    same = (ours[0] == expected[0]).all()
    return same, max(
        np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours[1], expected[1], strict=True)
    )


@pytest.mark.parametrize(
    ("name", "sizes", "policy"),
    [
        *(("dense", (1, 8, 1), policy) for policy in ALIKE | MIXED),
        ("dense", (2, 2, 2), "gather"),
        ("dense", (2, 2, 2), "stay"),
        ("dense", (1, 2, 4), "stay"),  # key heads do not divide, query heads do
        ("dense", (1, 1, 8), "gather"),  # no heads divide
        ("odd", (2, 2, 2), "stay"),
        *(
            pytest.param("hybrid", (2, 2, 2), of, marks=pytest.mark.slow)
            for of in ("gather", "stay")
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "x".join(map(str, x)),
)
def test_numbers_are_those_of_one_device(agents, alone, name, sizes, policy):
    mesh = mesh_of(*sizes)
    agent = placed(agents[name], mesh, (ALIKE | MIXED)[policy])
    same, difference = differences(run(agent, mesh), alone[name])
    assert same and difference < 1e-5


@pytest.mark.parametrize("name", ["dense", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_sweeps_on_a_mesh_are_single_steps_on_one_device(agents, alone, name):
    mesh, sweeps = mesh_of(2, 2, 2), SweepConfig(window=STEPS)
    agent = placed(agents[name], mesh, ALIKE["gather"])
    same, difference = differences(run(agent, mesh, sweeps=sweeps), alone[name])
    assert same and difference < 1e-5
    fewer = dataclasses.replace(sweeps, most=1)
    assert differences(run(agents[name], sweeps=fewer), alone[name])[1] > 1e-4  # the control


def test_the_control_other_items_have_other_numbers(agents, alone):
    same, difference = differences(run(agents["dense"], seed=1), alone["dense"])
    assert not same and difference > 1e-2


@pytest.mark.parametrize(
    ("heads", "kv_heads", "model", "cached"),
    [(4, 2, 1, 2), (4, 2, 2, 2), (4, 2, 4, 4), (4, 2, 8, 2), (6, 3, 2, 6), (12, 4, 6, 12)],
)
def test_heads_of_keys_are_repeated_where_only_queries_divide(heads, kv_heads, model, cached):
    config = dataclasses.replace(DENSE, num_heads=heads, num_kv_heads=kv_heads)
    assert cached_heads(config, Partition(mesh_of(1, 1, model))) == cached


@pytest.mark.parametrize("policy", ["gather", "replicate"])
def test_a_gradient_through_rounds_keeps_one_layer_whole_or_all(policy):
    """What is gathered at its use is not kept; a gather of weights alone would leave all loops."""
    config = dataclasses.replace(DENSE, width=128, ffn_width=512, num_layers=4)
    mesh = mesh_of(1, 8, 1)
    partition = Partition(mesh, Policies(reading=policy))
    shapes = jax.eval_shape(lambda: random_params(config, 1))
    flat = flatten_dict(shapes)
    for weight in weight_table(config):
        flat[weight.path] = jax.ShapeDtypeStruct(
            weight.shape, jnp.float32, sharding=weight.sharding(mesh)
        )
    agent = Agent(Decoder(config, partition=partition), unflatten_dict(flat))
    inputs = jax.ShapeDtypeStruct(
        (BATCH, 4, config.width), jnp.float32, sharding=batch_sharding(BATCH, mesh)
    )
    rounds = 3

    def loss(link, agent, inputs):
        agent = agent.during("reading")

        def body(x, _):
            hidden, _ = agent.read(x @ link, jnp.ones(x.shape[:2], bool))
            return jnp.tanh(hidden), None

        last, _ = jax.lax.scan(body, inputs, None, length=rounds)
        return jnp.square(last).mean()

    link = jax.ShapeDtypeStruct((config.width, config.width), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(link, agent, inputs).compile()
    layers = 4 * sum(x.size for path, x in flat.items() if path[0] == "layers")
    gathers = program_cost(compiled.as_text()).count("all-gather")
    if policy == "gather":
        assert compiled.memory_analysis().temp_size_in_bytes < layers / 2
        kernels = 7  # of a layer: q, k, v, o, gate, up, down
        assert gathers == rounds * config.num_layers * kernels * 2  # forward and backward
    else:
        assert compiled.memory_analysis().temp_size_in_bytes > layers
        assert gathers < config.num_layers * rounds


def test_phases_of_a_gradient_have_weights_of_their_own():
    """Whole ones for reading, gathered once, and split ones for thinking: as many products."""
    config, mesh = dataclasses.replace(DENSE, width=64, ffn_width=256), mesh_of(1, 8, 1)
    link = jax.ShapeDtypeStruct((config.width, config.width), jnp.float32)
    shape, split = (BATCH, 4, config.width), batch_sharding(BATCH, mesh)
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)

    def loss(link, agent, inputs):
        agent = agent.in_training().ahead("reading", "thinking")

        def body(x, _):
            hidden, cache = agent.during("reading").read(x @ link, jnp.ones(x.shape[:2], bool))
            cache = agent.seal(cache, 0)
            made = think(agent, lambda x: jnp.tanh(x @ link), hidden[:, -1], cache, steps=4)
            return made.thoughts, None

        return jnp.square(jax.lax.scan(body, inputs, None, length=3)[0]).mean()

    def cost(thinking):
        policies = Policies(training="replicate", thinking=thinking)
        agent = Agent(*abstract_agent(config, mesh, policies=policies))
        return program_cost(jax.jit(jax.grad(loss)).lower(link, agent, inputs).compile().as_text())

    whole, split_too = cost("replicate"), cost("stay")
    assert split_too.flops == whole.flops
    kernels = [w for w in weight_table(config) if w.is_linear]
    gathered = 4 * sum(np.prod(weight.shape) for weight in kernels) * 7 / 8
    assert whole.by_kind["all-gather"] == (len(kernels), gathered)
