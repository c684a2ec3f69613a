"""A team that answers questions by one method: questions in, answers out.

    questions --encode--> prompts --listen--> what the answering agent reads --write--> texts

What it reads comes over a channel of vectors, as text, or from its own prompt alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from rmas_jax.agents.adapters import Tuned
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import Piece, Texts, write_texts
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import row_keys
from rmas_jax.evaluation import listening
from rmas_jax.evaluation.answering import (
    ANSWERING,
    Answer,
    Answering,
    BatchAnswers,
    Keys,
    Listened,
    Prompts,
)
from rmas_jax.evaluation.loop_lm import team_of_one
from rmas_jax.evaluation.methods import (
    LATENT,
    METHODS,
    Method,
    result_name,
)
from rmas_jax.evaluation.programs import write_first
from rmas_jax.evaluation.prompt_hashes import prompt_hashes
from rmas_jax.evaluation.shared import Shared
from rmas_jax.links import Links, count_parameters
from rmas_jax.prompts import FIRST, LATER, Question, RolePrompt, declared_width
from rmas_jax.prompts.columns import texts_of
from rmas_jax.rounds.channels import CHANNELS, TEXT, Channel
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
    shared: Shared = dataclasses.field(default_factory=Shared)  # with other methods; by default: no

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

    def encode(self, questions: Sequence[Question]) -> Prompts:
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
        if self.latent_steps:
            assert self.channel is not None
            listened = listening.in_latents(self, self.channel, prompts)
        elif self.method.channel == TEXT:
            listened = listening.in_text(self, prompts)
        elif self.method.selection is None:
            kind = LATER if self.channel is not None and self.rounds > 1 else FIRST
            listened = listening.alone(self, prompts, self.answers_as, kind=kind)
        else:
            listened = listening.all_alone(self, prompts)
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

    def __call__(self, questions: Sequence[Question], *, seed: int = 0) -> list[Answer]:
        """Answers questions, in batches of `batch_size`; the last one is filled up.

        Args:
          questions: any texts; see `Team.encode`.
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
                answers.append(Answer(texts_of(question)["question"], texts, *costs))
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
    shared: Shared | None = None,
) -> Iterator[Answerer]:
    """An answerer for each method at each number of rounds; see `Method.variants`.

    `templates` are those of prompts, by schedule and role; `tuned` are the answerers of tuned
    methods, by method; `shared` is what the answerers compute alike.
    """
    shared = shared or Shared()
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
                shared=shared,
            )


def with_answerer(team: Team, agent: Agent) -> Team:
    """The team with another agent as answerer."""
    role = team.system.topology.answerer
    member = dataclasses.replace(team.members[role], agent=agent)
    return dataclasses.replace(team, members={**team.members, role: member})
