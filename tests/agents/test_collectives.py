"""What an agent's programs move between eight devices, counted in the compiled programs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_prefix
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.thinking import think
from rmas_jax.models import DecoderConfig, abstract_agent
from rmas_jax.models.weights import weight_table
from rmas_jax.planning.hlo import program_cost
from rmas_jax.planning.hlo_text import parse
from rmas_jax.rounds.supervision import Targets, score_text
from rmas_jax.sharding import BATCH_AXES, DEFAULT_POLICIES, make_mesh, replicated

TEXT = 64
CONFIG = DecoderConfig(
    model_type="qwen3",
    vocab_size=64,
    width=32,
    ffn_width=48,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    rope_theta=100.0,
    qk_norm=True,
    tie_embeddings=True,
)


def agent_on(mesh, **policies):
    policies = DEFAULT_POLICIES._replace(**policies)
    return Agent(*abstract_agent(CONFIG, mesh, policies=policies))


def batch_on(mesh, rows=8):
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    shape = (rows, TEXT)
    return (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split),
        jax.ShapeDtypeStruct(shape, bool, sharding=split),
        jax.ShapeDtypeStruct((rows, CONFIG.width), jnp.float32, sharding=split),
    )


def compiled_text(function, mesh, *args):
    link = jax.ShapeDtypeStruct((CONFIG.width,) * 2, jnp.float32, sharding=replicated(mesh))
    return jax.jit(function).lower(link, *args).compile().as_text()


def loss(link, agent, ids, valid, hidden):
    """Of a text that begins with a latent, after a prompt: two passes, and one back."""
    agent = agent.in_training()
    cache = agent.seal(read_prefix(agent, ids, valid), TEXT)
    embeds = jnp.concatenate([(hidden @ link)[:, None], agent.embed(ids[:, 1:])], axis=1)
    states, _ = agent.read(embeds, valid, cache)
    return score_text(agent, Targets(ids, valid), states).loss.mean()


def bytes_of(weights):
    return sum(4 * math.prod(w.shape) for w in weights if len(w.layer_shape) > 1)


def largest_buffer(program):
    """Bytes of the largest array that a program makes on a device."""
    return max(
        shape.bytes
        for computation in parse(program).computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode not in ("parameter", "while", "tuple", "call", "conditional")
        for shape in instruction.shapes
    )


def test_a_pass_gathers_each_layer_once_and_no_activation():
    mesh = make_mesh(fsdp=8)
    program = compiled_text(jax.grad(loss), mesh, agent_on(mesh), *batch_on(mesh))
    cost, table = program_cost(program), weight_table(CONFIG)
    layers = bytes_of(w for w in table if w.is_stacked)
    vocabulary = bytes_of(w for w in table if not w.is_stacked)
    gathered = (3 * layers + vocabulary) * 7 / 8
    assert cost.by_kind["all-gather"][1] == pytest.approx(gathered, rel=0.02)
    assert cost.link_bytes < 1.3 * gathered
    # A device sends no more at a time than its rows, and holds no more than with these alone.
    assert max(c.operand_bytes for c in cost.collectives) <= TEXT * CONFIG.width * 4
    one = make_mesh(devices=jax.devices()[:1])
    alone = compiled_text(jax.grad(loss), one, agent_on(one), *batch_on(one, rows=1))
    assert largest_buffer(program) <= largest_buffer(alone)
    # The control: where weights stay, the rows of all devices pass through each.
    stays = compiled_text(jax.grad(loss), mesh, agent_on(mesh, training="stay"), *batch_on(mesh))
    assert max(c.operand_bytes for c in program_cost(stays).collectives) > TEXT * CONFIG.width * 4


def thoughts(steps, link, agent, ids, valid, hidden):
    cache = agent.seal(read_prefix(agent, ids, valid), steps)
    return think(agent, lambda x: jnp.tanh(x @ link), hidden, cache, steps=steps)


def text(steps, link, agent, ids, valid, hidden):
    cache = agent.seal(read_prefix(agent, ids, valid), steps)
    return speak(agent, hidden @ link, cache, end_tokens=(1,), max_tokens=steps).tokens


@pytest.mark.parametrize(
    ("sizes", "policy", "each_layer", "each_step"),
    [
        ((8, 1, 1), "stay", 0, (0, 1)),  # of a text: whether all rows have ended
        ((1, 1, 8), "stay", 2, (0, 5)),
        ((1, 8, 1), "stay", 4, (1, 5)),
        ((1, 8, 1), "replicate", 0, (0, 4)),
    ],
)
@pytest.mark.parametrize(("function", "phase"), [(thoughts, "thinking"), (text, "writing")])
def test_collectives_of_a_single_step(function, phase, sizes, policy, each_layer, each_step):
    mesh, counts = make_mesh(*sizes), []
    for steps in (3, 4):
        run = functools.partial(function, steps)
        program = compiled_text(run, mesh, agent_on(mesh, **{phase: policy}), *batch_on(mesh))
        counts.append(program_cost(program, unknown_trips=steps - 1).count())
    once = each_step[function is text]
    assert counts[1] - counts[0] <= each_layer * CONFIG.num_layers + once
