"""A trace of the latent rounds, stage by stage: the vectors that each stage sends, and its time.

The stages are those of `recursion.listen`, which fuses them into one program; here each role has
its own program, and the host waits for every stage: to look at it, or to do other work in between.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sweeps import Before, relative_change
from rmas_jax.host.compilations import compilations
from rmas_jax.host.generators import result_of
from rmas_jax.host.nonfinite import Fault
from rmas_jax.models import Cache
from rmas_jax.prompts import FIRST, LATER, StagePrompt
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.stages import (
    Stages,
    Turn,
    arrivals,
    begin,
    check_prompts,
    deliver,
    no_feedback,
    no_thoughts,
    prompt_input,
    read_prefixes,
    think_turn,
)
from rmas_jax.topology import System, edge_name


class TracedStage(NamedTuple):
    """One agent's turn."""

    round: int  # from 0
    role: str
    sent: dict[str, np.ndarray]  # edge name -> [B, M, D']
    is_active: np.ndarray  # [B] bool; others have settled in an earlier round
    is_finite: np.ndarray  # [B] bool
    seconds: float  # of the whole batch
    compiled: bool  # whether `seconds` includes compilation
    sweeps: np.ndarray | None  # [B] of parallel thinking
    # [B] relative change of the answerer's received vectors, after the last stage before its own.
    change: np.ndarray | None = None

    @property
    def fault(self) -> Fault | None:
        """The rows that have broken here, or before, if there are any."""
        rows = np.flatnonzero(self.is_active & ~self.is_finite).tolist()
        return Fault(self.role, self.round, rows) if rows else None


class Trace(NamedTuple):
    """Rounds of latent collaboration, recorded."""

    prompt: PromptInput  # the answerer's
    stages: list[TracedStage]  # in order
    change: list[np.ndarray]  # per round: [B] relative change of the answerer's received vectors
    took: np.ndarray  # [B] int32 rounds


Inbox: TypeAlias = Mapping[str, Any]  # edge name -> latest vectors [B, M, D], an array

_read_prefixes = jax.jit(read_prefixes, static_argnames="system")


@functools.partial(jax.jit, static_argnames="role")
def _turn(
    stages: Stages, inbox: Inbox, kind: int, before: Before | None, index: int, *, role: str
) -> tuple[Turn, dict[str, jax.Array]]:
    """A role's turn after it receives what is in its inbox, and the vectors that it sends."""
    arrived = arrivals(stages, inbox, role, index=index)
    turn = think_turn(stages, role, arrived, kind=kind, before=before)
    return turn, deliver(stages, role, turn.thoughts)


@functools.partial(jax.jit, static_argnames="role")
def _arrived(
    stages: Stages, inbox: Inbox, before: jax.Array, index: int, *, role: str
) -> tuple[jax.Array, jax.Array]:
    """What a role receives, and its relative change since `before`."""
    arrived = arrivals(stages, inbox, role, index=index)
    return arrived, relative_change(before, arrived)


def trace_rounds(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    tolerance: float = 0.0,
    prefixes: Mapping[str, Cache] | None = None,
) -> Trace:
    """All of `traced_stages` at once.

    Raises:
      ValueError: fewer than one round.
      NonFiniteError: a stage's vectors are NaN or infinite.
    """
    trace = result_of(
        traced_stages(
            system, agents, channel, prompts, rounds=rounds, tolerance=tolerance, prefixes=prefixes
        )
    )
    for stage in trace.stages:
        if fault := stage.fault:
            raise fault.error()
    return trace


def traced_stages(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    tolerance: np.ndarray | float = 0.0,
    prefixes: Mapping[str, Cache] | None = None,
) -> Generator[TracedStage, None, Trace]:
    """Yields the stages of R rounds as they end, and returns all.

    Arguments as in `recursion.listen`. Rows stop as they do there, before the answerer's turn of
    the round that settles them; the rounds end once all have. Rows that are not finite go on, see
    `TracedStage.fault`.

    Raises:
      ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    check_prompts(system, agents, prompts)
    topology, answerer = system.topology, system.topology.answerer
    if prefixes is None:
        prefixes = _read_prefixes(system, agents, prompts)
    stages = begin(system, agents, channel, prompts, prefixes)
    inbox: dict[str, Any] = {**no_feedback(system, agents, prompts)}
    slots = len(prompts[answerer].senders) * system.latent_steps
    batch = len(prompts[answerer].body_ids)
    received: Any = np.zeros((batch, slots, agents[answerer].width), agents[answerer].dtype)
    active, took = np.ones(batch, bool), np.zeros(batch, np.int32)
    made = no_thoughts(system, agents, prompts)
    traced: list[TracedStage] = []
    change: list[np.ndarray] = []

    def inbox_of(role: str) -> Inbox:
        edges = (edge_name((sender, role)) for sender in prompts[role].senders)
        return {edge: inbox[edge] for edge in edges}

    def turn(index: int, role: str) -> TracedStage:
        kind = FIRST if index == 0 else LATER
        known, started = compilations(), time.perf_counter()
        before = Before(made[role], index > 0) if role in made else None
        taken, on_host = jax.device_get(
            _turn(stages, inbox_of(role), kind, before, index, role=role)
        )
        seconds = time.perf_counter() - started
        finite = np.logical_and.reduce([np.isfinite(x).all(axis=(1, 2)) for x in on_host.values()])
        if before is not None:
            made[role] = taken.thoughts
        inbox.update(on_host)  # uncommitted, as the first round's zeros: each program compiles once
        compiled = compilations() > known
        return TracedStage(index, role, on_host, active, finite, seconds, compiled, taken.sweeps)

    others = topology.order[:-1]
    for index in range(rounds):
        took = took + active
        if not system.latent_steps:
            continue
        for role in others:
            traced.append(turn(index, role))
            if role != others[-1]:
                yield traced[-1]
        arrived, moved = jax.device_get(
            _arrived(stages, inbox_of(answerer), received, index, role=answerer)
        )
        change.append(moved)
        received = np.where(active[:, None, None], arrived, received)
        if others:
            traced[-1] = traced[-1]._replace(change=moved)
            yield traced[-1]
        active = active & ~((index > 0) & (moved < tolerance))
        if index == rounds - 1 or not active.any():
            break
        traced.append(turn(index, answerer))
        yield traced[-1]
    kind = FIRST if rounds == 1 else LATER
    prompt = prompt_input(prompts[answerer], prefixes[answerer], received, kind=kind)
    return Trace(prompt, traced, change, took)
