"""Values of answering: how answers are written, what precedes one, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.answers import AnswerRetry, Texts
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import GREEDY
from rmas_jax.evaluation.crossings import Crossed
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.text_channel import Message
from rmas_jax.tools import Toolbox

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
    nearest_tokens: int = 0  # of each vector that crosses an edge, in the record; 0: none
    refills: bool = False  # evaluations put the next item in the row of an ended one (`refill`)

    @property
    def description(self) -> str:
        """The sampling by the names of `evaluation.sampling`, tools and retries, for results."""
        chosen = self.sampling
        parts = [
            f"max_new_tokens {self.max_tokens}, temperature {chosen.temperature:g}, top_k "
            f"{chosen.top_k}, top_p {chosen.top_p:g}, rollouts {self.rollouts}"
        ]
        parts += [f"tool {name}" for name in self.toolbox.names] if self.toolbox else []
        parts += ["answer retry"] if self.answer_retry else []
        return ", ".join(parts)


ANSWERING = Answering(max_tokens=256)  # the default


class Listened(NamedTuple):
    """What precedes an answer, and its cost."""

    prompt: PromptInput  # of the agent that answers
    tokens: np.ndarray | int  # [B] tokens of messages
    steps: np.ndarray | int  # [B] sequential model steps
    flops: np.ndarray  # [B] model FLOPs, see `models.flops`
    messages: Sequence[Message] = ()  # in text
    beside: Mapping[str, PromptInput] = {}  # role -> prompt of agents that answer, too
    prompt_hashes: Sequence[str] = ()  # [B] of `prompt`, see `prompt_hashes`
    # What crossed the edges, for each item; None: not asked, or nothing but text.
    crossed: Callable[[], list[Crossed]] | None = None
    sweeps: np.ndarray | None = None  # [B] of parallel thinking, of all turns; None: sequential

    def answered(
        self, by_agent: Mapping[str, list[Texts]], selection: str | None = None
    ) -> BatchAnswers:
        """The answers after it, with their whole cost; see `BatchAnswers`."""
        first = [rollouts[0] for rollouts in by_agent.values()]
        tokens = np.stack([texts.tokens for texts in first])
        own = Costs(
            tokens.sum(0),
            tokens.max(0),  # the agents do not wait for each other
            sum((texts.flops for texts in first), np.zeros(1)),
        )
        return BatchAnswers(
            by_agent,
            self.tokens + own.tokens,
            self.steps + own.steps,
            self.flops + own.flops,
            own,
            self.prompt_hashes,
            self.crossed,
            selection,
            self.sweeps,
        )


class Costs(NamedTuple):
    """The costs of answers alone, without what precedes them."""

    tokens: np.ndarray  # [B]
    steps: np.ndarray  # [B] sequential model steps
    flops: np.ndarray  # [B] model FLOPs


class BatchAnswers(NamedTuple):
    """The answers to a batch, on the host."""

    by_agent: Mapping[str, list[Texts]]  # role -> K of B texts; the last role is the answerer's
    tokens: np.ndarray  # [B] tokens written, in the first rollout
    steps: np.ndarray  # [B] sequential model steps, in the first rollout
    flops: np.ndarray  # [B] model FLOPs of all agents, in the first rollout
    own: Costs  # of the first rollout alone
    prompt_hashes: Sequence[str]  # [B], see `Listened`
    crossed: Callable[[], list[Crossed]] | None = None  # see `Listened`
    selection: str | None = None  # of `SELECTIONS`: which agent's answer counts
    sweeps: np.ndarray | None = None  # [B], see `Listened`

    @property
    def rollouts(self) -> list[Texts]:
        """The answerer's K of B texts."""
        return list(self.by_agent.values())[-1]


class Answer(NamedTuple):
    """The answer to a question, and its cost."""

    question: str
    texts: tuple[str, ...]  # K rollouts
    tokens: int  # written by all agents, in the first rollout
    steps: int  # sequential model steps, in the first rollout
    flops: float  # model FLOPs of all agents, in the first rollout

    @property
    def text(self) -> str:
        """The first rollout."""
        return self.texts[0]
