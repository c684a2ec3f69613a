"""The rounds of a group of requests, which go through them together.

    latents         one program for all rounds
    watched         one program for each stage, of one request, whose row fills the batch
    text            the messages of one stage after another, written by the text channel

The rounds are generators that stop after each program of a stage, so that others can write in
between. While a message in text is written, nothing else runs.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.nearest_tokens import nearest_texts
from rmas_jax.agents.reading import PromptInput, SharedStart, read_start
from rmas_jax.host.compilations import compilations
from rmas_jax.host.nonfinite import NonFiniteError, earliest_fault
from rmas_jax.links import Links
from rmas_jax.models import Cache
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds import recursion, text_channel
from rmas_jax.rounds.channels import CHANNELS, TEXT, Channel
from rmas_jax.rounds.recursion import Outcome
from rmas_jax.rounds.stages import read_prefixes
from rmas_jax.rounds.text_channel import Message
from rmas_jax.rounds.trace import TracedStage, traced_stages
from rmas_jax.serving.jobs import Job
from rmas_jax.serving.prompts import Layout, batch_of
from rmas_jax.serving.requests import Crossing, StageEvent
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.sharding import put_batch, to_host
from rmas_jax.team import Team
from rmas_jax.topology import System

_read_start = jax.jit(read_start)
_read_prefixes = jax.jit(read_prefixes, static_argnames="system")


@functools.partial(jax.jit, static_argnames="system")
def _listen(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Mapping[str, StagePrompt],
    starts: Mapping[str, SharedStart],
    *,
    rounds: jax.Array,
    tolerance: jax.Array,
) -> Outcome:
    """`recursion.listen`, prefixes included."""
    prefixes = read_prefixes(system, agents, prompts, starts)
    return recursion.listen(
        system, agents, channel, prompts, rounds=rounds, tolerance=tolerance, prefixes=prefixes
    )


class Prepared(NamedTuple):
    """What precedes the answers of a group."""

    prompt: PromptInput  # the answerer's, of a whole batch; the first rows are those of the jobs
    rounds: Sequence[int]  # that each job took
    errors: Mapping[int, NonFiniteError]  # by row: of jobs that have no answer


Pieces = Generator[None, None, Prepared]


class Rounds:
    """Runs the rounds of groups."""

    def __init__(self, team: Team, links: Links | None, settings: EngineSettings, layout: Layout):
        """Takes a team, and links if a channel of the settings needs them."""
        self.team, self.settings = team, settings
        self.channels: dict[str, Channel] = {
            name: CHANNELS[name].make(team.system, links or Links({}, {}), team.members)
            for name in settings.channels
            if name != TEXT
        }
        self.starts: dict[str, Cache] = {
            role: _read_start(team.agents[role], ids) for role, ids in layout.starts.items()
        }

    def of(self, jobs: Sequence[Job], *, message_tokens: int | None = None) -> Pieces:
        """The rounds of jobs of one group.

        Args:
          jobs: at most a batch.
          message_tokens: maximum tokens of a message in text; None: as the settings say.

        Raises:
          NonFiniteError: rows of stages that the host sees have such numbers; nothing is lost for
            the other jobs, which can be run again.
        """
        request = jobs[0].request
        prompts, has_start = batch_of([job.asked for job in jobs], self.settings.batch)
        starts = put_batch(
            {role: there for role, there in has_start.items() if role in self.starts},
            self.team.mesh,
        )
        shared = {role: SharedStart(self.starts[role], there) for role, there in starts.items()}
        if request.channel == TEXT:
            most = message_tokens or self.settings.message_tokens
            return self._in_text(jobs, prompts, shared, most)
        batch = put_batch(prompts, self.team.mesh)
        if request.is_watched:
            return self._watched(jobs[0], batch, shared)
        return self._in_latents(jobs, batch, shared)

    def _in_latents(
        self,
        jobs: Sequence[Job],
        prompts: Mapping[str, StagePrompt],
        starts: Mapping[str, SharedStart],
    ) -> Pieces:
        system, request = self.team.system, jobs[0].request
        tolerance = np.full(self.settings.batch, jobs[-1].request.tolerance, np.float32)
        tolerance[: len(jobs)] = [job.request.tolerance for job in jobs]
        outcome = _listen(
            system,
            self.team.agents,
            self.channels[request.channel or ""],
            prompts,
            starts,
            rounds=np.int32(request.rounds or 0),
            tolerance=tolerance,
        )
        took, faults = to_host((outcome.took, outcome.fault))
        errors = {}
        for row in range(len(jobs)):
            if fault := earliest_fault(system.topology.order, faults[row : row + 1]):
                errors[row] = fault.error()
        for job, rounds in zip(jobs, took.tolist(), strict=False):
            job.latents = self._latents(rounds)
        yield from ()
        return Prepared(outcome.prompt, took[: len(jobs)].tolist(), errors)

    def _latents(self, rounds: int) -> int:
        """Vectors that cross edges; in the last round, the answerer sends none."""
        topology, steps = self.team.system.topology, self.team.system.latent_steps
        own = sum(sender == topology.answerer for sender, _ in topology.edges)
        return steps * (rounds * len(topology.edges) - own)

    def _watched(
        self, job: Job, prompts: Mapping[str, StagePrompt], starts: Mapping[str, SharedStart]
    ) -> Pieces:
        system, request = self.team.system, job.request
        stages = traced_stages(
            system,
            self.team.agents,
            self.channels[request.channel or ""],
            prompts,
            rounds=request.rounds or 0,
            tolerance=request.tolerance,
            prefixes=_read_prefixes(system, self.team.agents, prompts, starts),
        )
        while True:
            try:
                stage = next(stages)
            except StopIteration as end:
                trace = end.value
                break
            nearest, most = request.nearest, self.settings.nearest
            job.emit(stage_event(self.team, stage, nearest=nearest, most=most))
            yield
        rounds = len(trace.change) or (request.rounds or 0)
        job.latents = self._latents(rounds)
        return Prepared(trace.prompt, [rounds], {})

    def _in_text(
        self,
        jobs: Sequence[Job],
        prompts: Mapping[str, StagePrompt],
        starts: Mapping[str, SharedStart],
        message_tokens: int,
    ) -> Pieces:
        team, rounds, number = self.team, jobs[0].request.rounds or 0, 0
        writing = text_channel.write_messages(
            team.system.topology,
            team.members,
            prompts,
            rounds=rounds,
            max_tokens=self.settings.message_tokens,
            limits=np.full(self.settings.batch, message_tokens),
            prefixes=_read_prefixes(
                team.system, team.agents, put_batch(prompts, team.mesh), starts
            ),
            mesh=team.mesh,
        )
        while True:
            try:
                known = compilations()
                message = next(writing)
            except StopIteration as end:
                return Prepared(end.value, [rounds] * len(jobs), {})
            for row, job in enumerate(jobs):
                if job.stages == number:  # else a run that failed for others emitted it
                    self._emit_message(job, message, row, compiled=compilations() > known)
            number += 1
            yield

    def _emit_message(self, job: Job, message: Message, row: int, *, compiled: bool) -> None:
        text, tokens = message.texts[row], int(message.tokens[row])
        job.stages += 1
        job.message_tokens += tokens
        if job.request.is_watched:
            place = message.round + 1, message.role
            job.emit(StageEvent(*place, message.seconds, {}, text, tokens, None, compiled=compiled))


def stage_event(team: Team, stage: TracedStage, *, nearest: int = 0, most: int = 0) -> StageEvent:
    """A stage of a trace as an event, of its first row.

    Args:
      team: its agents.
      stage: with vectors.
      nearest: tokens of each vector.
      most: a number of tokens of which one program serves all smaller ones; 0: `nearest`.
    """

    def tokens(edge: str, vectors: np.ndarray) -> list[list[tuple[str, float]]]:
        receiver = team.members[edge.partition("->")[2]]
        count = min(most or nearest, receiver.agent.config.vocab_size)
        return [row[:nearest] for row in nearest_texts(receiver, vectors, count=count)]

    sent = {
        name: Crossing(
            np.linalg.norm(vectors[0].astype(np.float32), axis=-1).tolist(),
            tokens(name, vectors[0]) if nearest else [],
        )
        for name, vectors in stage.sent.items()
    }
    sweeps = None if stage.sweeps is None else int(stage.sweeps[0])
    change = None
    if stage.change is not None and stage.round:  # the first round has none before it
        change = float(stage.change[0])
    place = stage.round + 1, stage.role
    return StageEvent(*place, stage.seconds, sent, None, 0, change, sweeps, stage.compiled)
