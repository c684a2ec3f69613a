"""What an agent's programs move between eight devices, counted in the compiled programs."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_prefix
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.thinking import think
from rmas_jax.models import DecoderConfig, abstract_agent
from rmas_jax.models.weights import weight_table
from rmas_jax.partition import DEFAULT_POLICIES
from rmas_jax.planning.hlo import program_cost
from rmas_jax.planning.hlo_text import parse
from rmas_jax.rounds.supervision import Targets, score_text
from rmas_jax.sharding import BATCH_AXES, make_mesh, replicated

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


WIDE = dataclasses.replace(CONFIG, width=256, ffn_width=512, vocab_size=1024, head_dim=32)


def compiled_text(function, mesh, *, rows=8, config=CONFIG, **policies):
    """The program of a function of a link, an agent and rows of texts and states."""
    policies = DEFAULT_POLICIES._replace(**policies)
    agent = Agent(*abstract_agent(config, mesh, policies=policies))
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    shapes = {
        "link": ((config.width,) * 2, jnp.float32, replicated(mesh)),
        "ids": ((rows, TEXT), jnp.int32, split),
        "valid": ((rows, TEXT), bool, split),
        "hidden": ((rows, config.width), jnp.float32, split),
    }
    given = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype, sharding) in shapes.items()
    }
    link = given.pop("link")
    return jax.jit(function).lower(link, agent, *given.values()).compile().as_text()


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
    program = compiled_text(jax.grad(loss), mesh)
    cost, table = program_cost(program), weight_table(CONFIG)
    layers = bytes_of(w for w in table if w.is_stacked)
    vocabulary = bytes_of(w for w in table if not w.is_stacked)
    gathered = (3 * layers + vocabulary) * 7 / 8
    assert cost.by_kind["all-gather"][1] == pytest.approx(gathered, rel=0.02)
    assert cost.link_bytes < 1.3 * gathered
    # A device sends no more at a time than its rows, and holds no more than with these alone.
    assert max(c.operand_bytes for c in cost.collectives) <= TEXT * CONFIG.width * 4
    one = make_mesh(devices=jax.devices()[:1])
    alone = compiled_text(jax.grad(loss), one, rows=1)
    assert largest_buffer(program) <= largest_buffer(alone)
    # The control: where weights stay, the rows of all devices pass through each.
    stays = compiled_text(jax.grad(loss), mesh, training="stay")
    assert max(c.operand_bytes for c in program_cost(stays).collectives) > TEXT * CONFIG.width * 4


def thoughts(steps, link, agent, ids, valid, hidden):
    cache = agent.seal(read_prefix(agent, ids, valid), steps)
    return think(agent, lambda x: jnp.tanh(x @ link), hidden, cache, steps=steps)


def text(steps, link, agent, ids, valid, hidden):
    cache = agent.seal(read_prefix(agent, ids, valid), steps)
    return speak(agent, hidden @ link, cache, end_tokens=(1,), max_tokens=steps).tokens


def collectives_of_a_step(function, mesh, **given):
    """How many run for one step more."""
    few, more = (
        program_cost(
            compiled_text(functools.partial(function, steps), mesh, **given),
            unknown_trips=steps - 1,
        ).count()
        for steps in (3, 4)
    )
    return more - few


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
    found = collectives_of_a_step(function, make_mesh(*sizes), **{phase: policy})
    assert found <= each_layer * CONFIG.num_layers + each_step[function is text]


@pytest.fixture
def optimised():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
def test_a_slice_of_tpus_has_the_same_collectives(monkeypatch, optimised):
    """Compiled for 16 chips by TPUs' own compiler, without a chip."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("XLA_FLAGS", "")  # libtpu refuses flags of the CPU's compiler
    slice_ = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    mesh, given = make_mesh(fsdp=16, devices=slice_.devices), {"rows": 16, "config": WIDE}
    cost = program_cost(compiled_text(jax.grad(loss), mesh, **given))
    matrices = 7 * WIDE.num_layers
    # Three passes, and the projection to the vocabulary; ids and targets are small.
    assert 3 * matrices + 1 <= cost.count("all-gather") <= 3 * matrices + 4
    assert cost.count("all-reduce") == 1  # the link's gradient
    assert collectives_of_a_step(thoughts, mesh, **given) <= 4 * WIDE.num_layers + 2
