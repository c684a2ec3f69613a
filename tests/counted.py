"""An agent's programs on meshes: compiled, and what they move, as `program_cost` counts it.

python tests/counted.py            # counts on 16 fake devices, as JSON
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import conftest  # noqa: F401  # flags of the compiler, before JAX starts
import jax
import jax.numpy as jnp
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

DEVICES = 16
TEXT = 16
CONFIG = DecoderConfig(
    model_type="qwen3",
    vocab_size=64,
    width=128,
    ffn_width=96,
    num_layers=3,
    num_heads=16,
    num_kv_heads=4,
    head_dim=8,
    rope_theta=100.0,
    qk_norm=True,
    tie_embeddings=True,
)


def compiled(function, mesh, *, rows, config=CONFIG, dtype="float32", **policies):
    """The program of a function of a link, an agent and rows of texts and states."""
    policies = DEFAULT_POLICIES._replace(**policies)
    agent = Agent(*abstract_agent(config, mesh, dtype=dtype, policies=policies))
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    shapes = {
        "link": ((config.width,) * 2, dtype, replicated(mesh)),
        "ids": ((rows, TEXT), jnp.int32, split),
        "valid": ((rows, TEXT), bool, split),
        "hidden": ((rows, config.width), dtype, split),
    }
    given = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype, sharding) in shapes.items()
    }
    link = given.pop("link")
    return jax.jit(function).lower(link, agent, *given.values()).compile()


def loss(link, agent, ids, valid, hidden):
    """Of a text that begins with a latent, after a prompt: two passes, and one back."""
    agent = agent.in_training()
    cache = agent.seal(read_prefix(agent, ids, valid), TEXT)
    embeds = jnp.concatenate([(hidden @ link)[:, None], agent.embed(ids[:, 1:])], axis=1)
    states, _ = agent.read(embeds, valid, cache)
    return score_text(agent, Targets(ids, valid), states).loss.mean()


def thoughts(steps, link, agent, ids, valid, hidden):
    cache = agent.seal(read_prefix(agent, ids, valid), steps)
    return think(agent, lambda x: jnp.tanh(x @ link), hidden, cache, steps=steps).thoughts


def text(steps, link, agent, ids, valid, hidden):
    cache = agent.seal(read_prefix(agent, ids, valid), steps)
    return speak(agent, hidden @ link, cache, end_tokens=(1,), max_tokens=steps).tokens


STEPS = {"thinking": thoughts, "writing": text}  # by phase


def bytes_of(weights):
    return sum(4 * math.prod(w.shape) for w in weights if len(w.layer_shape) > 1)


def gathered_once(config=CONFIG):
    """Bytes of the matrices of all layers, and of those of the vocabulary."""
    table = weight_table(config)
    of_layers = bytes_of(w for w in table if w.is_stacked)
    return of_layers, bytes_of(w for w in table if not w.is_stacked)


def largest_buffer(program):
    """Bytes of the largest array that a program makes on a device."""
    return max(
        shape.bytes
        for computation in parse(program).computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode not in ("parameter", "while", "tuple", "call", "conditional")
        for shape in instruction.shapes
    )


def collectives_of_a_step(function, mesh, **given):
    """How many run for one step more."""
    few, more = (
        program_cost(
            compiled(functools.partial(function, steps), mesh, **given).as_text(),
            unknown_trips=steps - 1,
        ).count()
        for steps in (3, 4)
    )
    return more - few


def counts_of_a_pass(devices, **policies) -> dict[str, Any]:
    """Of a loss and its gradient, with a row on each of some devices over `fsdp`."""
    mesh = make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    program = compiled(jax.grad(loss), mesh, rows=devices, **policies)
    cost = program_cost(program.as_text())
    return {
        "gathered": cost.by_kind.get("all-gather", (0, 0))[1],
        "link_bytes": cost.link_bytes,
        "operand": max((c.operand_bytes for c in cost.collectives), default=0),
        "buffer": largest_buffer(program.as_text()),
        "temporaries": program.memory_analysis().temp_size_in_bytes,
    }


@dataclasses.dataclass(frozen=True)
class Step:
    """A single step under a policy, and the collectives that it may have."""

    phase: str
    sizes: tuple[int, int, int]  # of the mesh
    policy: str
    each_layer: int
    each_step: int

    @property
    def name(self) -> str:
        return f"{self.phase} {self.sizes} {self.policy}"

    def count(self) -> int:
        given = {"rows": DEVICES, self.phase: self.policy}
        return collectives_of_a_step(STEPS[self.phase], make_mesh(*self.sizes), **given)


ALLOWED = [
    Step(phase, sizes, policy, each_layer, each_step)
    for sizes, policy, each_layer, of_phase in (
        ((DEVICES, 1, 1), "stay", 0, (0, 1)),  # of a text: whether all rows have ended
        ((1, 1, DEVICES), "stay", 2, (0, 5)),
        ((1, DEVICES, 1), "stay", 4, (1, 5)),
        ((1, DEVICES, 1), "replicate", 0, (0, 4)),
    )
    for phase, each_step in zip(STEPS, of_phase, strict=True)
]


def main() -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    passes = {
        f"{policy} {devices}": counts_of_a_pass(devices, training=policy)
        for policy in ("gather", "stay")
        for devices in (DEVICES // 2, DEVICES)
    }
    print(json.dumps({"passes": passes, "steps": {step.name: step.count() for step in ALLOWED}}))


if __name__ == "__main__":
    main()
