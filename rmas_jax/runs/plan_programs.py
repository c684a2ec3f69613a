"""The programs of a run, from shapes alone: what the loops and the driver call, lowered.

    train    outer step, validation, tuning step, inner step
    answer   see `plan_answers`

A program's outputs are the next one's inputs, with the shardings that the compiler chose.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.config import PhaseConfig, TuningConfig
from rmas_jax.links import LinkConfig, link_size
from rmas_jax.planning.bounds import Bound, bound_of_step
from rmas_jax.planning.programs import Chain, Compile, Program
from rmas_jax.rounds.supervision import Supervision
from rmas_jax.runs.plan_answers import plan_answers
from rmas_jax.runs.plan_inputs import PhaseInput, RunInputs
from rmas_jax.runs.plan_shapes import abstract_links, caches_of, link_shape, on_sharding, others
from rmas_jax.sharding import abstract_batch
from rmas_jax.team import Team
from rmas_jax.topology import System
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.inner.regression import regress_jitted, steps_per_block
from rmas_jax.training.inner.step import UpstreamLink, start_link
from rmas_jax.training.outer.loop import TrainableLinks
from rmas_jax.training.outer.step import phase_supervision
from rmas_jax.training.phases.loop import abstract_step
from rmas_jax.training.rollouts import roll_out
from rmas_jax.training.tuning.loop import TrainableAdapter, abstract_adapter


def program_chains(inputs: RunInputs, *, only_throughput: bool = False) -> list[Chain]:
    """The programs of a run in chains that do not depend on one another.

    Phases with batches of one shape share their validation, which one chain compiles once.
    `only_throughput` leaves out programs on which the throughput does not depend.
    """
    phases = [phase_programs(inputs.team, phase) for phase in inputs.phases]
    programs = [
        *([inner_program(inputs)] if inputs.config.inner.steps else []),
        *(step for step, _ in phases),
        *itertools.starmap(functools.partial(tuning_program, inputs.team), inputs.tuning),
    ]
    chains = [[program] for program in programs] + [[validation for _, validation in phases]]
    if only_throughput:
        chains = [[x for x in chain if x.is_throughput] for chain in chains]
    trained = [functools.partial(_in_order, chain) for chain in chains if chain]
    is_answered = not (only_throughput and phases)
    return [*trained, *([functools.partial(plan_answers, inputs)] if is_answered else [])]


def _in_order(programs: Sequence[Program], compile_: Compile) -> None:
    for program in programs:
        compile_(program)


def tuning_program(team: Team, entry: TuningConfig, batch: TrainingData) -> Program:
    """The step of an adapter, for its longest batch."""
    trainable = TrainableAdapter(
        team, entry.name, entry, abstract_adapter(team, entry), entry.remat
    )
    state, step = abstract_step(trainable)
    on_mesh = abstract_batch(batch, trainable.mesh)
    return Program(
        name=f"step of {entry.name}",
        lower=functools.partial(step.lower, trainable.agents, on_mesh, state),
        items=len(batch),
        runs=entry.steps,
        arguments={
            "weights": trainable.agents,
            "trained": state.params,
            "optimiser": (state.optimizer, state.step),
            "inputs": on_mesh,
        },
        beside={"weights": others(team, trainable.role)},
    )


def phase_programs(team: Team, phase: PhaseInput) -> tuple[Program, Program]:
    """The step and the validation of a phase, for their longest batches."""
    config = phase.config
    trainable = TrainableLinks(team, config, abstract_links(team))
    state, step = abstract_step(trainable)
    batch, validation = (
        abstract_batch(data, team.mesh) for data in (phase.batch, phase.validation)
    )
    system = team.system
    trained = Program(
        name=f"step of {config.name}",
        lower=functools.partial(step.lower, trainable.agents, batch, state),
        items=len(phase.batch),
        runs=config.steps,
        arguments={
            "weights": team.agents,
            "trained": state.params,
            "optimiser": (state.optimizer, state.step),
            "inputs": batch,
        },
        beside={},
        caches=caches_of(team, phase.batch.prompts),
        taken=_scored_share(_supervision(system, config, phase.batch).scored or {}),
        bound=phase_bound(system, team.agents, config, phase.batch),
    )
    validated = Program(
        name=f"validation of {config.name}",
        lower=functools.partial(
            roll_out.lower, team.system, team.agents, state.params, validation, rounds=config.rounds
        ),
        items=len(phase.validation),
        runs=None,
        arguments={"weights": team.agents, "trained": state.params, "inputs": validation},
        beside={"optimiser": state.optimizer},
        caches=caches_of(team, phase.validation.prompts),
        is_throughput=False,
    )
    return trained, validated


def phase_bound(
    system: System, agents: Mapping[str, Agent], config: PhaseConfig, batch: TrainingData
) -> Bound:
    """The bound of a step of a phase on a batch; arrays, or their shapes."""
    supervision, answerer = _supervision(system, config, batch), system.topology.answerer
    return bound_of_step(
        system,
        agents,
        batch.prompts,
        {role: target.ids.shape[2] for role, target in batch.targets.items()},
        supervision.scored or {},
        forced={
            role: supervision.forces(role, is_answerer=role == answerer)
            for role in system.topology.order
        },
        rounds=config.rounds,
    )


def _supervision(system: System, config: PhaseConfig, batch: TrainingData) -> Supervision:
    """The shapes of what a phase supervises."""
    answerer = system.topology.answerer
    of = functools.partial(phase_supervision, config, answerer=answerer)
    return jax.eval_shape(of, batch.targets)


def _scored_share(scored: Mapping[str, tuple[bool, ...]]) -> float:
    """Share of the rounds that score a text, of roles that score some rounds and not others."""
    some = [sum(rounds) / len(rounds) for rounds in scored.values() if len(set(rounds)) > 1]
    return sum(some) / len(some) if some else 1.0


def inner_program(inputs: RunInputs) -> Program:
    """A block of steps of the largest link of the inner loop, on one device."""
    team, config = inputs.team, inputs.config.inner
    system = team.system
    links: dict[str, LinkConfig] = {**system.inner, **system.outer}
    name = max(links, key=lambda name: link_size(links[name]))
    link = links[name]
    sender, _, receiver = name.partition("->")
    ends = team.agents[sender], team.agents[receiver or sender]
    sizes = [agent.width * agent.dtype.itemsize for agent in ends]
    block = steps_per_block(config, sum(sizes))
    shape = (block, config.batch_size)
    assert team.mesh is not None  # a run has one
    # As in the run: the links of a part are on one device after the other.
    place = [*(system.inner if name in system.inner else system.outer)].index(name)
    device = jax.sharding.SingleDeviceSharding(team.mesh.devices.flat[place % team.mesh.size])
    params = link_shape(link)
    upstream = None
    if receiver and system.sent_vectors == "outer_of_inner":
        upstream = UpstreamLink(system.inner[sender], link_shape(system.inner[sender]))
    state, upstream, hidden, target, key, noise = on_sharding(
        device,
        (
            jax.eval_shape(lambda params: start_link(params, config), params),
            upstream,
            jax.ShapeDtypeStruct((*shape, link.in_width), ends[0].dtype),
            jax.ShapeDtypeStruct((*shape, link.out_width), ends[1].dtype),
            jax.eval_shape(lambda: jax.random.key(0)),
            jax.ShapeDtypeStruct((), np.float32),
        ),
    )
    lower = functools.partial(
        regress_jitted.lower, link, config, state, hidden, target,
        key=key, noise=noise, upstream=upstream,
    )  # fmt: skip
    return Program(
        name=f"inner steps of {name}, {block} at once",
        lower=lower,
        items=block * config.batch_size,
        runs=-(-config.steps // block) * config.repeats * -(-len(links) // team.mesh.size),
        arguments={
            "trained": (state.params, upstream),
            "optimiser": state.optimizer_state,
            "inputs": (hidden, target),
        },
        beside={"weights": team.agents},
        trips=block,
        is_throughput=False,
    )
