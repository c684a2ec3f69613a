"""The rounds of a group of requests, which go through them together.

    latents         a program for each role, whose vectors pass over the host
    text            the messages of one stage after another, written by the text channel

The rounds are generators that stop after each stage, so that others can write in between. While a
message in text is written, nothing else runs.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.nearest_tokens import nearest_texts
from rmas_jax.agents.reading import PromptInput, SharedStart, read_prefix, read_start
from rmas_jax.host.compilations import compilations
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.links import Links
from rmas_jax.models import Cache
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds import text_channel
from rmas_jax.rounds.channels import CHANNELS, TEXT, Channel
from rmas_jax.rounds.text_channel import Message
from rmas_jax.rounds.trace import TracedStage, traced_stages
from rmas_jax.serving.jobs import Job
from rmas_jax.serving.prompts import Layout, batch_of
from rmas_jax.serving.requests import Crossing, StageEvent
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.sharding import put_batch
from rmas_jax.team import Team


@jax.jit
def _read_starts(agents: Mapping[str, Agent], starts: Mapping[str, jax.Array]) -> dict[str, Cache]:
    """Reads the shared starts [1, P] of roles."""
    return {role: read_start(agents[role], ids) for role, ids in starts.items()}


@jax.jit
def _read_prefixes(
    agents: Mapping[str, Agent],
    prefixes: Mapping[str, tuple[jax.Array, jax.Array]],
    starts: Mapping[str, SharedStart],
) -> dict[str, Cache]:
    """Reads the prefix of every role, ids and valid [B, P]; one program for all channels."""
    return {
        role: read_prefix(agents[role], *prefix, starts.get(role))
        for role, prefix in prefixes.items()
    }


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
        starts = layout.starts
        self.starts: dict[str, Cache] = _read_starts(team.agents, starts) if starts else {}

    def of(self, jobs: Sequence[Job], *, message_tokens: int | None = None) -> Pieces:
        """The rounds of jobs of one group.

        Args:
          jobs: at most a batch.
          message_tokens: maximum tokens of a message in text; None: as the settings say.

        Raises:
          NonFiniteError: rows of messages in text have such numbers; nothing is lost for the other
            jobs, which can be run again. In latents, `Prepared.errors` has them.
        """
        prompts, has_start = batch_of([job.asked for job in jobs], self.settings.batch)
        if jobs[0].request.channel == TEXT:
            most = message_tokens or self.settings.message_tokens
            return (yield from self._in_text(jobs, prompts, has_start, most))
        return (yield from self._in_latents(jobs, prompts, has_start))

    def _prefixes(
        self, prompts: Mapping[str, StagePrompt], has_start: Mapping[str, np.ndarray]
    ) -> dict[str, Cache]:
        """The caches of all roles' prefixes, behind the starts that rows have."""
        prefixes = {role: (of.prefix_ids, of.prefix_valid) for role, of in prompts.items()}
        known = {role: there for role, there in has_start.items() if role in self.starts}
        prefixes, known = put_batch((prefixes, known), self.team.mesh)
        starts = {role: SharedStart(self.starts[role], there) for role, there in known.items()}
        return _read_prefixes(self.team.agents, prefixes, starts)

    def _in_latents(
        self,
        jobs: Sequence[Job],
        prompts: Mapping[str, StagePrompt],
        has_start: Mapping[str, np.ndarray],
    ) -> Pieces:
        system, request = self.team.system, jobs[0].request
        tolerance = np.full(self.settings.batch, np.inf, np.float32)  # copies wait for nobody
        tolerance[: len(jobs)] = [job.request.tolerance for job in jobs]
        stages = traced_stages(
            system,
            self.team.agents,
            self.channels[request.channel or ""],
            put_batch(prompts, self.team.mesh),
            rounds=request.rounds or 0,
            tolerance=tolerance,
            prefixes=self._prefixes(prompts, has_start),
        )
        errors: dict[int, NonFiniteError] = {}
        while True:
            try:
                stage = next(stages)
            except StopIteration as end:
                trace = end.value
                break
            if fault := stage.fault:
                for row in fault.rows:
                    errors.setdefault(row, fault._replace(rows=[row]).error())
            for row, job in enumerate(jobs):
                is_over = job.is_over or row in errors or not stage.is_active[row]
                if job.request.is_watched and not is_over:
                    job.emit(self._stage_event(stage, row, job.request.nearest))
            yield
        for job, rounds in zip(jobs, trace.took.tolist(), strict=False):
            job.latents = self._latents(rounds)
        return Prepared(trace.prompt, trace.took[: len(jobs)].tolist(), errors)

    def _stage_event(self, stage: TracedStage, row: int, nearest: int) -> StageEvent:
        return stage_event(self.team, stage, row, nearest=nearest, most=self.settings.nearest)

    def _latents(self, rounds: int) -> int:
        """Vectors that cross edges; in the last round, the answerer sends none."""
        topology, steps = self.team.system.topology, self.team.system.latent_steps
        own = sum(sender == topology.answerer for sender, _ in topology.edges)
        return steps * (rounds * len(topology.edges) - own)

    def _in_text(
        self,
        jobs: Sequence[Job],
        prompts: Mapping[str, StagePrompt],
        has_start: Mapping[str, np.ndarray],
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
            prefixes=self._prefixes(prompts, has_start),
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


def stage_event(
    team: Team, stage: TracedStage, row: int = 0, *, nearest: int = 0, most: int = 0
) -> StageEvent:
    """A stage of a trace as an event.

    Args:
      team: its agents.
      stage: with vectors.
      row: of the batch.
      nearest: tokens of each vector.
      most: a number of tokens of which one program serves all smaller ones; 0: `nearest`.
    """

    def tokens(edge: str, vectors: np.ndarray) -> list[list[tuple[str, float]]]:
        receiver = team.members[edge.partition("->")[2]]
        count = min(most or nearest, receiver.agent.config.vocab_size)
        return [found[:nearest] for found in nearest_texts(receiver, vectors, count=count)]

    sent = {
        name: Crossing(
            np.linalg.norm(vectors[row].astype(np.float32), axis=-1).tolist(),
            tokens(name, vectors[row]) if nearest else [],
        )
        for name, vectors in stage.sent.items()
    }
    sweeps = None if stage.sweeps is None else int(stage.sweeps[row])
    change = None
    if stage.change is not None and stage.round:  # the first round has none before it
        change = float(stage.change[row])
    place = stage.round + 1, stage.role
    return StageEvent(*place, stage.seconds, sent, None, 0, change, sweeps, stage.compiled)
