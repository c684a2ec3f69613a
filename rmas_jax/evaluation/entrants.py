"""What is measured: methods at numbers of rounds, and how each answers a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import AnswerRetry, Texts, write_texts
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import GREEDY
from rmas_jax.host.nonfinite import earliest_fault
from rmas_jax.links import Links
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds import recursion, text_channel
from rmas_jax.rounds.channels import LatentChannel, SelectChannel, ShuffledChannel
from rmas_jax.sharding import put_batch, put_whole, to_host
from rmas_jax.team import Team
from rmas_jax.tools import Toolbox
from rmas_jax.topology import System

Prompts = Mapping[str, StagePrompt]  # by role


@dataclasses.dataclass(frozen=True)
class Answering:
    """How answers are written; messages between agents are greedy."""

    max_tokens: int  # of a text
    sampling: SamplingConfig = GREEDY
    rollouts: int = 1  # K answers to a question, from the same latents or messages
    toolbox: Toolbox | None = None
    answer_retry: AnswerRetry | None = None


class Answers(NamedTuple):
    """What a method says to a batch, on the host."""

    rollouts: list[Texts]  # K of B texts
    tokens: np.ndarray  # [B] tokens written, in the first rollout
    steps: np.ndarray  # [B] sequential model steps, in the first rollout


Keys = Sequence[jax.Array | None]  # per rollout: [B] PRNG keys, where tokens are drawn


@dataclasses.dataclass(frozen=True)
class MethodRun:
    """A method at one number of rounds, ready to run."""

    method: str
    rounds: int
    latent_steps: int  # M; 0 where nothing latent is passed
    slot_width: int  # of the prompts it reads
    answer: Callable[[Prompts, Keys], Answers]  # NonFiniteError: an agent's numbers are not finite


def planned_methods(
    methods: Sequence[str], rounds: Sequence[int], *, order: Sequence[str], latent_steps: int
) -> list[tuple[str, int]]:
    """Names and rounds of the entrants that `method_runs` makes for a team of these roles."""
    found = []
    for method in methods:
        if method == "single_agents":
            found += [(f"single_{role}", 1) for role in order]
        elif method != "truncated_text" or latent_steps:
            found += [(method, r) for r in rounds]
    return found


def method_runs(
    team: Team,
    links: Links,
    aligned_links: Links,
    methods: Sequence[str],
    rounds: Sequence[int],
    answering: Answering,
) -> Iterator[MethodRun]:
    """The methods that were asked for, at each number of rounds."""
    steps = team.system.latent_steps
    links, aligned_links = put_whole((links, aligned_links), team.mesh)
    for method in methods:
        if method == "single_agents":
            for role in team.system.topology.order:
                answer = functools.partial(_alone, team, role=role, answering=answering)
                yield MethodRun(f"single_{role}", 1, 0, 0, answer)
            continue
        if method == "truncated_text" and steps == 0:
            continue  # a text of no tokens passes nothing: that is no_latents
        for r in rounds:
            if method in ("recursive_text", "truncated_text"):
                cut = steps if method == "truncated_text" else None
                answer = functools.partial(
                    _in_text, team, rounds=r, answering=answering, max_message_tokens=cut
                )
                yield MethodRun(method, r, 0, answering.max_tokens, answer)
                continue
            if method not in ("recursive_mas", "aligned_links", "no_latents", "shuffled_latents"):
                raise ValueError(f"method {method!r} does not exist")
            passed = 0 if method == "no_latents" else steps
            answer = functools.partial(
                _in_latents,
                dataclasses.replace(team, system=team.system.replace(latent_steps=passed)),
                aligned_links if method == "aligned_links" else links,
                rounds=r,
                answering=answering,
                shuffle=method == "shuffled_latents",
            )
            yield MethodRun(method, r, passed, passed, answer)


@functools.partial(jax.jit, static_argnames="system")
def _listen(
    system: System,
    agents: Mapping[str, Agent],
    links: Links,
    prompts: Prompts,
    *,
    rounds: jax.Array,
    shuffle: jax.Array,
) -> recursion.Outcome:
    """What the latent rounds leave to the answerer.

    Rounds and control are data: all latent methods of the same M run one compiled program.
    """
    channel = LatentChannel(system, links)
    channel = SelectChannel(shuffle, ShuffledChannel(channel), channel)
    return recursion.listen(system, agents, channel, prompts, rounds=rounds)


def _written(
    team: Team, role: str, prompt: PromptInput, keys: Keys, answering: Answering
) -> list[Texts]:
    """What an agent writes in each rollout."""
    return [
        write_texts(
            team.members[role],
            prompt,
            max_tokens=answering.max_tokens,
            sampling=answering.sampling,
            keys=of_rollout,
            toolbox=answering.toolbox,
            answer_retry=answering.answer_retry,
        )
        for of_rollout in keys
    ]


def _in_latents(
    team: Team,
    links: Links,
    prompts: Prompts,
    keys: Keys,
    *,
    rounds: int,
    answering: Answering,
    shuffle: bool,
) -> Answers:
    """Only the answer is text; before it, each stage but the last takes M steps."""
    topology, system = team.system.topology, team.system
    outcome = _listen(
        system,
        team.agents,
        links,
        put_batch(prompts, team.mesh),
        rounds=rounds,
        shuffle=shuffle,
    )
    if fault := earliest_fault(topology.order, to_host(outcome.fault)):
        raise fault.error()
    rollouts = _written(team, topology.answerer, outcome.prompt, keys, answering)
    tokens = rollouts[0].tokens
    thoughts = (len(topology.order) * rounds - 1) * system.latent_steps
    return Answers(rollouts, tokens, thoughts + tokens)


def _in_text(
    team: Team,
    prompts: Prompts,
    keys: Keys,
    *,
    rounds: int,
    answering: Answering,
    max_message_tokens: int | None,
) -> Answers:
    prompt, messages = text_channel.listen(
        team.system.topology,
        team.members,
        prompts,
        rounds=rounds,
        max_tokens=max_message_tokens or answering.max_tokens,
        mesh=team.mesh,
    )
    rollouts = _written(team, team.system.topology.answerer, prompt, keys, answering)
    tokens = rollouts[0].tokens + sum(message.tokens for message in messages)
    return Answers(rollouts, tokens, tokens)  # stages follow each other, and a token is a step


def _alone(team: Team, prompts: Prompts, keys: Keys, *, role: str, answering: Answering) -> Answers:
    prompt = text_channel.read_alone(team.members[role], prompts[role], mesh=team.mesh)
    rollouts = _written(team, role, prompt, keys, answering)
    return Answers(rollouts, rollouts[0].tokens, rollouts[0].tokens)
