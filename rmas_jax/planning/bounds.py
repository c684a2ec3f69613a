"""Least times of reading, thinking, writing and training, from sizes alone.

Of every part, the longer of its arithmetic at peak rate and of one read of its weights and caches,
both shared by all devices; parts that wait for each other add up. Widths are those of the padded
arrays. What a compiled program needs beyond this, its partition and its compiler add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sweeps import windows
from rmas_jax.links import link_flops
from rmas_jax.models.flops import logit_flops, read_flops
from rmas_jax.planning.chips import Chip
from rmas_jax.prompts import StagePrompt
from rmas_jax.topology import System, edge_name

FORWARD, WITH_INPUT_GRADIENT = 1, 2  # products with a frozen weight, in units of the forward pass
WITH_ALL_GRADIENTS = 3  # with a trained one


class Part(NamedTuple):
    """Work that waits for the part before it."""

    flops: float
    weights: float  # bytes, read at least once
    caches: float = 0.0  # bytes, read at least once
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Bound:
    """The parts of a program."""

    parts: tuple[Part, ...]

    def seconds(
        self, chip: Chip, devices: int, *, dtype: str, weight_rate: float | None = None
    ) -> float:
        """The least seconds on a number of devices.

        Args:
          chip: its peak and bandwidth.
          devices: D.
          dtype: of products.
          weight_rate: bytes/s at which a device reads weights; None: its bandwidth.
        """
        peak, caches = devices * chip.peak(dtype), devices * chip.bandwidth
        weights = caches if weight_rate is None else devices * weight_rate
        return sum(
            part.repeats * max(part.flops / peak, part.weights / weights + part.caches / caches)
            for part in self.parts
        )

    @property
    def flops(self) -> float:
        """Model FLOPs of all devices together."""
        return sum(part.repeats * part.flops for part in self.parts)


def reading(agent: Agent, rows: int, positions: int, context: int = 0, *, passes: int = 1) -> Part:
    """A pass over positions of B rows after a context, without logits."""
    flops = passes * rows * float(read_flops(agent.config, positions, context))
    return Part(flops, _weight_bytes(agent)) if positions else Part(0.0, 0.0)


def single_steps(
    agent: Agent, rows: int, steps: int, context: int, *, writes: bool = False, reads: int = 1
) -> Part:
    """Steps of one position of B rows; `writes` adds logits, `reads` repeats each for gradients."""
    middle = context + steps // 2  # the mean over the steps
    flops = rows * float(read_flops(agent.config, 1, middle))
    weights = _weight_bytes(agent)
    if writes:
        flops += rows * float(logit_flops(agent.config, 1))
        weights += agent.width * agent.config.vocab_size * agent.dtype.itemsize
    return Part(flops, weights, rows * middle * cache_bytes(agent), reads * steps)


def sweep(agent: Agent, rows: int, width: int, context: int, *, repeats: int = 1) -> Part:
    """A sweep of parallel thinking over W thoughts of B rows, which read those before them."""
    step = single_steps(agent, rows, 1, context)
    written = rows * width * cache_bytes(agent)
    return Part(width * step.flops, step.weights, step.caches + written, repeats)


def thinking(system: System, agent: Agent, rows: int, context: int, *, reads: int = 1) -> Part:
    """The thoughts of a turn: single steps, or at least one sweep over each window."""
    steps = system.latent_steps - 1
    if system.sweeps is None or not steps:
        return single_steps(agent, rows, steps, context, reads=reads)
    count, width = windows(steps, system.sweeps.window)
    return sweep(agent, rows, width, context, repeats=reads * count)


def cache_bytes(agent: Agent) -> int:
    """Bytes of keys and values of a position."""
    c = agent.config
    return 2 * c.num_kv_caches * c.num_kv_heads * c.head_dim * agent.dtype.itemsize


def bound_of_rounds(
    system: System,
    agents: Mapping[str, Agent],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    reads_prefixes: bool = True,
) -> Bound:
    """R rounds of thoughts, up to the answerer's input in the last one."""
    parts = _rounds(system, agents, prompts, rounds=rounds, reads_prefixes=reads_prefixes)
    return Bound(tuple(parts))


def _rounds(
    system: System,
    agents: Mapping[str, Agent],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    reads_prefixes: bool,
) -> Iterator[Part]:
    topology, steps = system.topology, system.latent_steps
    for role in topology.order if steps else (topology.answerer,):
        rows, prefix, body = widths(prompts[role])
        if reads_prefixes:
            yield reading(agents[role], rows, prefix)
        turns = (rounds - (role == topology.answerer)) if steps else 0
        for _ in range(turns):
            yield reading(agents[role], rows, body, prefix)
            yield thinking(system, agents[role], rows, prefix + body)


def bound_of_answer(agent: Agent, rows: int, context: int, *, tokens: int) -> Bound:
    """Texts of as many tokens after the last prompt token; the first needs no step."""
    return Bound((single_steps(agent, rows, tokens - 1, context, writes=True),))


def bound_of_step(
    system: System,
    agents: Mapping[str, Agent],
    prompts: Mapping[str, StagePrompt],
    texts: Mapping[str, int],
    scored: Mapping[str, tuple[bool, ...]],
    *,
    forced: Mapping[str, bool],
    rounds: int,
) -> Bound:
    """A training step of the outer loop, without recomputation.

    Args:
      system, agents, prompts: as in the step.
      texts: role -> width of its texts.
      scored: role -> whether its text has a loss, for each round.
      forced: role -> whether its thoughts come from its text.
      rounds: R.
    """
    topology, steps = system.topology, system.latent_steps
    parts = []
    for role in topology.order:
        agent, (rows, prefix, body) = agents[role], widths(prompts[role])
        parts.append(reading(agent, rows, prefix))
        for r in range(rounds):
            has_input = r > 0 or any(
                (sender, role) not in topology.feedback_edges for sender in topology.senders(role)
            )
            passes = WITH_INPUT_GRADIENT if has_input else FORWARD
            is_scored = scored.get(role, (False,) * rounds)[r]
            read = texts[role] - 1 if is_scored else steps - 1 if forced[role] else 0
            parts.append(reading(agent, rows, body + read, prefix, passes=passes))
            if is_scored:
                logits = rows * float(logit_flops(agent.config, texts[role]))
                parts.append(Part(passes * logits, 0.0))
            if not forced[role]:
                reads = 2 if has_input else 1
                parts.append(thinking(system, agent, rows, prefix + body, reads=reads))
            sent = [system.outer[edge_name(edge)] for edge in topology.edges if edge[0] == role]
            flops = rows * steps * sum(map(link_flops, sent))
            parts.append(Part(WITH_ALL_GRADIENTS * flops, 0.0))
    return Bound(tuple(parts))


def widths(prompt: StagePrompt) -> tuple[int, int, int]:
    """Rows, and positions of prefix and body."""
    return (*prompt.prefix_ids.shape, prompt.body_ids.shape[2])


def _weight_bytes(agent: Agent) -> float:
    """Bytes of the layers, which every pass reads."""
    leaves = jax.tree.leaves(agent.params["layers"])
    return agent.config.num_loops * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
