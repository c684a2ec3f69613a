"""A team that answers questions by one method: questions in, answers out.

    questions --encode--> prompts --listen--> what the answering agent reads --write--> texts

What it reads comes over a channel of vectors, as text, or from its own prompt alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import AnswerRetry, Texts, write_texts
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import GREEDY, row_keys
from rmas_jax.evaluation.methods import (
    LATENT,
    METHODS,
    Method,
    result_name,
)
from rmas_jax.host.nonfinite import earliest_fault
from rmas_jax.links import Links
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import StagePrompt, declared_width
from rmas_jax.rounds import recursion, text_channel
from rmas_jax.rounds.channels import CHANNELS, TEXT, Channel, SelectChannel, ShuffledChannel
from rmas_jax.rounds.text_channel import Message
from rmas_jax.sharding import put_batch, to_host
from rmas_jax.team import Team
from rmas_jax.tools import Toolbox
from rmas_jax.topology import System

Prompts = Mapping[str, StagePrompt]  # by role
Keys = Sequence[jax.Array | None]  # per rollout: [B] PRNG keys, where tokens are drawn


@dataclasses.dataclass(frozen=True)
class Answering:
    """How answers are written; messages between agents are greedy."""

    max_tokens: int  # of a text
    sampling: SamplingConfig = GREEDY
    rollouts: int = 1  # K answers to a question, from the same latents or messages
    toolbox: Toolbox | None = None
    answer_retry: AnswerRetry | None = None


class Listened(NamedTuple):
    """What precedes an answer, and its cost."""

    prompt: PromptInput  # of the agent that answers
    tokens: np.ndarray | int  # [B] tokens of messages
    steps: np.ndarray | int  # [B] sequential model steps
    messages: Sequence[Message] = ()  # in text


class BatchAnswers(NamedTuple):
    """The answers to a batch, on the host."""

    rollouts: list[Texts]  # K of B texts
    tokens: np.ndarray  # [B] tokens written, in the first rollout
    steps: np.ndarray  # [B] sequential model steps, in the first rollout


class Answer(NamedTuple):
    """The answer to a question, and its cost."""

    question: str
    texts: tuple[str, ...]  # K rollouts
    tokens: int  # written by all agents, in the first rollout
    steps: int  # sequential model steps, in the first rollout

    @property
    def text(self) -> str:
        """The first rollout."""
        return self.texts[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Answerer:
    """A team and how it answers.

    Called with questions it encodes them to a few declared widths and batches of one size, so that
    a new question compiles nothing (`host.compilations`).
    """

    team: Team
    links: Links | None = None  # None where the method uses none
    method: Method = METHODS[LATENT]
    rounds: int = 1
    answering: Answering = Answering(max_tokens=256)
    role: str | None = None  # who answers; None: the topology's answerer
    batch_size: int = 1  # of the questions of a call

    def __post_init__(self) -> None:
        if self.links is None and self.latent_steps and self.method.uses_links:
            raise ValueError(f"links must be given for the method {self.method.name}, got None")

    @property
    def name(self) -> str:
        """The method in results; of an agent alone, with its role."""
        return result_name(self.method, self.role)

    @property
    def answers_as(self) -> str:
        """The role that answers."""
        return self.role or self.team.system.topology.answerer

    @property
    def latent_steps(self) -> int:
        """M, of the latents that this method passes; 0: none."""
        return self.team.system.latent_steps if self.method.passes_latents else 0

    @property
    def system(self) -> System:
        """The system, with the latent steps of this method."""
        return self.team.system.replace(latent_steps=self.latent_steps)

    @functools.cached_property
    def channel(self) -> Channel | None:
        """What crosses the edges; None: text, or nothing of an agent alone."""
        if (named := CHANNELS.get(self.method.channel or "")) is None:
            return None
        links = Links({}, {}) if self.links is None else self.links
        return named.make(self.system, links, self.team.members)

    @property
    def slot_width(self) -> int:
        """Positions of a slot in the prompts that this method reads."""
        return self.answering.max_tokens if self.method.channel == TEXT else self.latent_steps

    def encode(self, questions: Sequence[str]) -> Prompts:
        """Prompts of a few declared widths, for questions that come one by one."""
        return self.team.encode(questions, slot_width=self.slot_width, block_width=declared_width)

    def listen(self, prompts: Prompts) -> Listened:
        """What the answering agent reads after the rounds of B prompts.

        Raises:
          NonFiniteError: numbers of an agent are NaN or infinite.
        """
        if self.channel is not None:
            return _in_latents(self, self.channel, prompts)
        return _in_text(self, prompts) if self.method.channel == TEXT else _alone(self, prompts)

    def write(self, prompt: PromptInput, keys: jax.Array | None) -> Texts:
        """A text per row by the answering agent.

        Raises:
          NonFiniteError: its logits are NaN or infinite.
        """
        how = self.answering
        return write_texts(
            self.team.members[self.answers_as],
            prompt,
            max_tokens=how.max_tokens,
            sampling=how.sampling,
            keys=keys,
            toolbox=how.toolbox,
            answer_retry=how.answer_retry,
        )

    def answer(self, prompts: Prompts, keys: Keys) -> BatchAnswers:
        """Answers B prompts, with slots of `slot_width`.

        Raises:
          NonFiniteError: numbers of an agent are NaN or infinite.
        """
        return self.write_rollouts(self.listen(prompts), keys)

    def write_rollouts(self, listened: Listened, keys: Keys) -> BatchAnswers:
        """The answers of the agent after all that precedes them.

        Raises:
          NonFiniteError: its logits are NaN or infinite.
        """
        rollouts = [self.write(listened.prompt, of_rollout) for of_rollout in keys]
        written = rollouts[0].tokens
        return BatchAnswers(rollouts, listened.tokens + written, listened.steps + written)

    def keys(self, seed: int, rows: np.ndarray) -> Keys:
        """Per rollout, the PRNG keys of items by their numbers [B]; None for greedy answers."""
        how = self.answering
        if how.sampling.temperature == 0:
            return [None] * how.rollouts
        key = jax.random.key(seed)
        return [row_keys(jax.random.fold_in(key, k), rows) for k in range(how.rollouts)]

    def __call__(self, questions: Sequence[str], *, seed: int = 0) -> list[Answer]:
        """Answers questions, in batches of `batch_size`; the last one is filled up.

        Args:
          questions: any texts.
          seed: of drawn answers; those to the n-th question follow from it and n.

        Raises:
          NonFiniteError: numbers of an agent are NaN or infinite.
        """
        answers = []
        for start in range(0, len(questions), self.batch_size):
            asked = list(questions[start : start + self.batch_size])
            filled = asked + [asked[-1]] * (self.batch_size - len(asked))
            found = self.answer(
                self.encode(filled), self.keys(seed, start + np.arange(self.batch_size))
            )
            for i, question in enumerate(asked):
                texts = tuple(rollout.opening + rollout.texts[i] for rollout in found.rollouts)
                answers.append(Answer(question, texts, int(found.tokens[i]), int(found.steps[i])))
        return answers


def answerers(
    team: Team,
    links: Links,
    aligned_links: Links,
    methods: Sequence[str],
    rounds: Sequence[int],
    answering: Answering,
    *,
    tuned: Mapping[str, Agent] | None = None,
) -> Iterator[Answerer]:
    """An answerer for each method at each number of rounds.

    An agent alone has one round, and a text of no tokens is left out: it passes nothing. `tuned`
    are the answerers of tuned methods, by method.
    """
    order, steps = team.system.topology.order, team.system.latent_steps
    for name in methods:
        if (method := METHODS.get(name)) is None:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {name!r}")
        used = aligned_links if method.has_aligned_links else links
        by_team = with_answerer(team, (tuned or {})[name]) if method.is_tuned else team
        for role, count in method.variants(rounds, order=order, latent_steps=steps):
            yield Answerer(by_team, used, method, count, answering, role)


def with_answerer(team: Team, agent: Agent) -> Team:
    """The team with another agent as answerer."""
    role = team.system.topology.answerer
    member = dataclasses.replace(team.members[role], agent=agent)
    return dataclasses.replace(team, members={**team.members, role: member})


@functools.partial(jax.jit, static_argnames="system")
def _listen(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Prompts,
    *,
    rounds: jax.Array,
    shuffle: jax.Array,
) -> recursion.Outcome:
    """What the latent rounds leave to the answerer.

    Rounds and control are data: all methods over a channel run one compiled program for an M.
    """
    channel = SelectChannel(shuffle, ShuffledChannel(channel), channel)
    return recursion.listen(system, agents, channel, prompts, rounds=rounds)


def _in_latents(answerer: Answerer, channel: Channel, prompts: Prompts) -> Listened:
    """Only the answer is text; before it, each stage but the last takes M steps."""
    team, order = answerer.team, answerer.system.topology.order
    outcome = _listen(
        answerer.system,
        team.agents,
        channel,
        put_batch(prompts, team.mesh),
        rounds=answerer.rounds,
        shuffle=answerer.method.is_shuffled,
    )
    if fault := earliest_fault(order, to_host(outcome.fault)):
        raise fault.error()
    steps = (len(order) * answerer.rounds - 1) * answerer.latent_steps
    return Listened(outcome.prompt, 0, steps)


def _in_text(answerer: Answerer, prompts: Prompts) -> Listened:
    """Stages follow each other, and a token is a step."""
    team, longest = answerer.team, answerer.answering.max_tokens
    if answerer.method.is_cut:
        longest = team.system.latent_steps
    prompt, messages = text_channel.listen(
        team.system.topology,
        team.members,
        prompts,
        rounds=answerer.rounds,
        max_tokens=longest,
        mesh=team.mesh,
    )
    tokens = sum(message.tokens for message in messages)
    return Listened(prompt, tokens, tokens, messages)


def _alone(answerer: Answerer, prompts: Prompts) -> Listened:
    """The agent reads its first prompt, with nothing in the slots."""
    team, role = answerer.team, answerer.answers_as
    return Listened(
        text_channel.read_alone(team.members[role], prompts[role], mesh=team.mesh), 0, 0
    )
