"""Tuning of the answerer: an adapter as a `Trainable`, and its data."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmas_jax.agents.adapters import Adapter, named_arrays, start_adapter
from rmas_jax.agents.agent import Agent
from rmas_jax.config import TrainingConfig, TuningConfig
from rmas_jax.data.examples import Example
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.links import link_size
from rmas_jax.prompts import stage_tokens
from rmas_jax.sharding import batch_shards, put_batch, to_host
from rmas_jax.team import Team
from rmas_jax.topology import System
from rmas_jax.training.curves import as_values
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import EncodedItems, encode_texts
from rmas_jax.training.phases.step import TrainState, start_state
from rmas_jax.training.rollouts import even_batches
from rmas_jax.training.tuning.step import answer_scores, tuning_step

_scores = jax.jit(answer_scores)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainableAdapter:
    """An adapter of a team's answerer, as a `Trainable`."""

    team: Team
    name: str
    config: TrainingConfig
    initial: Adapter
    remat: bool = True  # whether a gradient recomputes layers

    loop = "tuning"

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        return self.team.mesh

    @property
    def role(self) -> str:
        """The role of the tuned agent."""
        return self.team.system.topology.answerer

    @property
    def agents(self) -> Agent:
        agent = self.team.agents[self.role]
        return agent if self.remat else agent.storing("all")

    @property
    def step(self) -> Callable[..., tuple[TrainState, Any]]:
        return functools.partial(tuning_step, self.config)

    @property
    def largest_loss(self) -> float:
        """Twice the loss of uniform guessing."""
        return 2 * math.log(self.agents.config.vocab_size)

    def start(self, params: Adapter) -> TrainState:
        return start_state(self.config, params, params)

    def batches(self, data: EncodedItems, *, key: jax.Array) -> Batches:
        return Batches(data, batch_size=self.config.batch_size, key=key, mesh=self.mesh)

    def validate(self, params: Adapter, data: EncodedItems) -> dict[str, Any]:
        """ "loss", and by role "text_exact_match" [1], means over the items."""
        size = self.config.batch_size // self.config.accumulation
        losses, matches = np.zeros(len(data)), np.zeros(len(data))
        for batch, rows in even_batches(data, batch_size=size, shards=batch_shards(self.mesh)):
            found = to_host(_scores(params, self.agents, put_batch(batch, self.mesh)))
            counts = rows >= 0
            losses[rows[counts]] = found.loss[counts]
            matches[rows[counts]] = found.exact_match[counts]
        if lost := np.flatnonzero(~np.isfinite(losses)).tolist():
            raise NonFiniteError(self.role, "answer: loss", lost, items=lost)
        values = {"loss": losses.mean(), "text_exact_match": {self.role: matches.mean()[None]}}
        return as_values(values)

    def parts(self, params: Adapter) -> Mapping[str, Any]:
        return {f"{self.name} {path}": array for path, array in named_arrays(params).items()}

    def first_fault(self, metrics: Mapping[str, Any]) -> str | None:
        return str(NonFiniteError(self.role, "answer: loss")) if metrics["faults"].any() else None


def new_adapter(team: Team, entry: TuningConfig, key: jax.Array) -> Adapter:
    """An adapter of the answerer before its training; see `start_adapter`.

    By default a soft prompt has as many parameters as all links of the system.
    """
    return _start(team.system, team.agents[team.system.topology.answerer], entry, key)


def abstract_adapter(team: Team, entry: TuningConfig) -> Adapter:
    """`new_adapter` with a `jax.ShapeDtypeStruct` for each array, as those of agents may be."""
    agent = team.agents[team.system.topology.answerer]
    start = functools.partial(_start, team.system, entry=entry)
    return jax.eval_shape(start, agent, key=jax.random.key(0))


def _start(system: System, agent: Agent, entry: TuningConfig, key: jax.Array) -> Adapter:
    links = [*system.inner.values(), *system.outer.values()]
    vectors = round(sum(map(link_size, links)) / agent.width)
    return start_adapter(agent, entry, key=key, vectors=vectors)


def encode_answers(team: Team, examples: Sequence[Example]) -> EncodedItems:
    """First-round prompts of the answerer alone and its final answers: one role, one round.

    As in the method `single_agents`, slots have no positions.
    """
    return EncodedItems.on_disk(examples, functools.partial(_encode, team))


def _encode(team: Team, examples: Sequence[Example]) -> EncodedItems:
    role = team.system.topology.answerer
    member = team.members[role]
    questions = [example.inputs for example in examples]
    answers = [example.texts[role][-1:] for example in examples]
    return EncodedItems(
        prompts={role: stage_tokens(member.tokenizer, member.template, questions, slot_width=0)},
        texts={role: encode_texts(member.tokenizer, answers, member.end_tokens[0])},
        rounds=1,
    )
