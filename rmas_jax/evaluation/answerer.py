"""A team that answers questions by one method: questions in, answers out.

    questions --encode--> prompts --listen--> what the answering agent reads --write--> texts

What it reads comes over a channel of vectors, as text, or from its own prompt alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from rmas_jax.agents.adapters import Tuned
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import Piece, Texts, write_texts
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import row_keys
from rmas_jax.evaluation.answering import (
    ANSWERING,
    Answer,
    Answering,
    BatchAnswers,
    Keys,
    Listened,
    Prompts,
)
from rmas_jax.evaluation.crossings import Crossed, crossed_tokens
from rmas_jax.evaluation.loop_lm import team_of_one
from rmas_jax.evaluation.methods import (
    LATENT,
    METHODS,
    Method,
    result_name,
)
from rmas_jax.evaluation.programs import write_first
from rmas_jax.evaluation.prompt_hashes import prompt_hashes
from rmas_jax.host.nonfinite import earliest_fault
from rmas_jax.links import Links, count_parameters
from rmas_jax.planning.executables import ahead_of_time
from rmas_jax.prompts import RolePrompt, declared_width
from rmas_jax.rounds import recursion, text_channel
from rmas_jax.rounds.budget import latent_flops, prefix_flops, steps_before_answer
from rmas_jax.rounds.channels import CHANNELS, TEXT, Channel, SelectChannel, ShuffledChannel
from rmas_jax.rounds.schedules import SCHEDULES, longest_chain
from rmas_jax.rounds.text_channel import Message
from rmas_jax.sharding import put_batch, to_host
from rmas_jax.team import Team
from rmas_jax.topology import System


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
    answering: Answering = ANSWERING
    role: str | None = None  # who answers; None: the topology's answerer
    batch_size: int = 1  # of the questions of a call
    templates: Mapping[str, RolePrompt] | None = None  # of the prompts; None: the members' own
    tuned_parameters: int = 0  # trained parameters of the team's answerer

    def __post_init__(self) -> None:
        if self.method.has_own_prompts and self.templates is None:
            raise ValueError(f"templates must be given for {self.method.name}, got None")
        if self.links is None and self.latent_steps and self.method.uses_links:
            raise ValueError(f"links must be given for the method {self.method.name}, got None")

    @property
    def name(self) -> str:
        """The method in results; of an agent alone, with its role."""
        return result_name(self.method, self.role)

    @property
    def columns(self) -> dict[str, int]:
        """The columns that all results of this method share."""
        of_links = count_parameters(self.links) if self.method.uses_links else 0
        return {
            "latent_steps": self.latent_steps,
            "trained_parameters": of_links if self.latent_steps else self.tuned_parameters,
        }

    @property
    def answers_as(self) -> str:
        """The role that answers."""
        return self.role or self.team.system.topology.answerer

    @property
    def refills(self) -> bool:
        """Whether evaluations refill the rows of ended answers: not where several agents answer."""
        return self.answering.refills and self.method.selection is None

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
        return self.team.encode(
            questions,
            slot_width=self.slot_width,
            templates=self.templates,
            block_width=declared_width,
        )

    def listen(self, prompts: Prompts) -> Listened:
        """What the answering agent reads after the rounds of B prompts.

        Raises:
          NonFiniteError: numbers of an agent are NaN or infinite.
        """
        if self.channel is not None:
            listened = _in_latents(self, self.channel, prompts)
        elif self.method.channel == TEXT:
            listened = _in_text(self, prompts)
        elif self.method.selection is None:
            listened = _alone(self, prompts, self.answers_as)
        else:
            listened = _all_alone(self, prompts)
        hashes = prompt_hashes(prompts[self.answers_as], listened.prompt)
        return listened._replace(prompt_hashes=hashes)

    def write(
        self,
        prompt: PromptInput,
        keys: jax.Array | None,
        role: str | None = None,
        *,
        first: Piece | None = None,
    ) -> Texts:
        """A text per row by an agent (None: the answering one); see `write_texts`.

        Raises:
          NonFiniteError: its logits are NaN or infinite.
        """
        how, member = self.answering, self.team.members[role or self.answers_as]
        if first is None:
            first = write_first(member, prompt, how, keys=keys)
        return write_texts(
            member,
            prompt,
            max_tokens=how.max_tokens,
            sampling=how.sampling,
            keys=keys,
            toolbox=how.toolbox,
            answer_retry=how.answer_retry,
            first=first,
        )

    def answer(self, prompts: Prompts, keys: Keys) -> BatchAnswers:
        """Answers B prompts, with slots of `slot_width`.

        Raises:
          NonFiniteError: numbers of an agent are NaN or infinite.
        """
        return self.write_rollouts(self.listen(prompts), keys)

    def write_rollouts(self, listened: Listened, keys: Keys) -> BatchAnswers:
        """The answers of the agent, or of all agents, after all that precedes them.

        Raises:
          NonFiniteError: its logits are NaN or infinite.
        """
        by_agent = {
            role: [self.write(prompt, of_rollout, role) for of_rollout in keys]
            for role, prompt in {**listened.beside, self.answers_as: listened.prompt}.items()
        }
        return listened.answered(by_agent, self.method.selection)

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
                costs = int(found.tokens[i]), int(found.steps[i]), float(found.flops[i])
                answers.append(Answer(question, texts, *costs))
        return answers


def answerers(
    team: Team,
    links: Links,
    aligned_links: Links,
    methods: Sequence[str],
    rounds: Sequence[int],
    answering: Answering,
    templates: Mapping[str, Mapping[str, RolePrompt]],
    *,
    tuned: Mapping[str, Tuned] | None = None,
) -> Iterator[Answerer]:
    """An answerer for each method at each number of rounds; see `Method.variants`.

    `templates` are those of prompts, by schedule and role; `tuned` are the answerers of tuned
    methods, by method.
    """
    order, steps = team.system.topology.order, team.system.latent_steps
    for name in methods:
        if (method := METHODS.get(name)) is None:
            raise ValueError(f"methods must be of {', '.join(METHODS)}, got {name!r}")
        used = aligned_links if method.has_aligned_links else links
        own, trained = team, 0
        if method.is_tuned:
            agent, trained = (tuned or {})[name]
            own = with_answerer(team, agent)
        for role, count in method.variants(rounds, order=order, latent_steps=steps):
            if method.is_looped:
                own = team_of_one(team, count)
            yield Answerer(
                own,
                used,
                method,
                count,
                answering,
                role,
                templates=templates[method.schedule],
                tuned_parameters=trained,
            )


def with_answerer(team: Team, agent: Agent) -> Team:
    """The team with another agent as answerer."""
    role = team.system.topology.answerer
    member = dataclasses.replace(team.members[role], agent=agent)
    return dataclasses.replace(team, members={**team.members, role: member})


@functools.partial(ahead_of_time, static=("system",))
@functools.partial(jax.jit, static_argnames="system")
def listen_jitted(
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
    """Only the answer is text; before it, each stage takes M steps."""
    team, order = answerer.team, answerer.system.topology.order
    outcome = listen_jitted(
        answerer.system,
        team.agents,
        channel,
        put_batch(prompts, team.mesh),
        rounds=np.int32(answerer.rounds),  # as it is planned: a Python integer has a weak type
        shuffle=answerer.method.is_shuffled,
    )
    if fault := earliest_fault(order, to_host(outcome.fault)):
        raise fault.error()
    steps = steps_before_answer(team.system.topology, answerer.rounds, answerer.latent_steps)
    sweeps = None if outcome.sweeps is None else to_host(outcome.sweeps)
    flops = latent_flops(
        answerer.system, team.agents, prompts, rounds=answerer.rounds, sweeps=sweeps
    )
    return Listened(
        outcome.prompt,
        0,
        steps,
        flops,
        crossed=_crossed(answerer, channel, prompts),
        sweeps=None if sweeps is None else sweeps.sum(axis=1),
    )


def _crossed(
    answerer: Answerer, channel: Channel, prompts: Prompts
) -> Callable[[], list[Crossed]] | None:
    """What crosses the edges, computed once it is asked for: its time is not the method's."""
    count = answerer.answering.nearest_tokens
    if not (count and answerer.latent_steps):
        return None
    if answerer.method.is_shuffled:
        channel = ShuffledChannel(channel)
    return functools.cache(
        functools.partial(
            crossed_tokens,
            *(answerer.team, answerer.system, channel, prompts),
            rounds=answerer.rounds,
            count=count,
        )
    )


def _in_text(answerer: Answerer, prompts: Prompts) -> Listened:
    """A token is a step; stages that do not wait for each other run side by side."""
    team, method, rounds = answerer.team, answerer.method, answerer.rounds
    topology, latent_steps = team.system.topology, team.system.latent_steps
    max_tokens = latent_steps if method.is_cut else answerer.answering.max_tokens
    if method.fills_budget:
        role = topology.answerer
        prompt, messages = text_channel.refine(
            team.members[role],
            prompts[role],
            budget=steps_before_answer(topology, rounds, latent_steps),
            max_tokens=max_tokens,
            mesh=team.mesh,
        )
        tokens = sum(message.tokens for message in messages)
        return Listened(prompt, tokens, tokens, _flops(answerer, prompts, messages), messages)
    schedule = SCHEDULES[method.schedule]
    prompt, messages = text_channel.listen(
        topology,
        team.members,
        prompts,
        rounds=rounds,
        max_tokens=max_tokens,
        schedule=schedule,
        mesh=team.mesh,
    )
    written = [message.tokens for message in messages]
    steps = longest_chain(schedule(topology, rounds), [*written, 0])
    return Listened(prompt, sum(written), steps, _flops(answerer, prompts, messages), messages)


def _flops(answerer: Answerer, prompts: Prompts, messages: Sequence[Message]) -> np.ndarray:
    """Model FLOPs [B] of messages, and of the prefixes that their writers and the answerer read."""
    roles = dict.fromkeys([*(message.role for message in messages), answerer.answers_as])
    of_messages = sum(message.flops for message in messages)
    return prefix_flops(answerer.team.agents, prompts, roles) + of_messages


def _alone(answerer: Answerer, prompts: Prompts, role: str) -> Listened:
    """An agent reads its first prompt, with nothing in the slots."""
    team = answerer.team
    prompt = text_channel.read_alone(team.members[role], prompts[role], mesh=team.mesh)
    return Listened(prompt, 0, 0, prefix_flops(team.agents, prompts, [role]))


def _all_alone(answerer: Answerer, prompts: Prompts) -> Listened:
    """Every agent reads its first prompt."""
    order = answerer.team.system.topology.order
    alone = {role: _alone(answerer, prompts, role) for role in order}
    own = alone.pop(answerer.answers_as)
    return own._replace(
        flops=own.flops + sum(listened.flops for listened in alone.values()),
        beside={role: listened.prompt for role, listened in alone.items()},
    )
