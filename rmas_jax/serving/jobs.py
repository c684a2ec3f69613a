"""A request under way in the engine: its texts and events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.member import Member
from rmas_jax.agents.text_stream import Part, TextStream, TokenTexts
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.prompts import FIRST, LATER
from rmas_jax.serving.prompts import Asked
from rmas_jax.serving.requests import (
    CANCELLED,
    LENGTH,
    STOP,
    DoneEvent,
    EndEvent,
    Event,
    FailedEvent,
    Request,
    TextEvent,
)
from rmas_jax.serving.statistics import ANSWERED, FAILED, Tally
from rmas_jax.serving.tickets import Ticket


class Writer:
    """The agent that answers, and how its tokens become text."""

    def __init__(self, member: Member):
        self.member = member
        self.texts = TokenTexts(member.tokenizer)


class Written(NamedTuple):
    """What rows of the device have written, on the host."""

    done: np.ndarray  # [B] bool
    tokens: np.ndarray  # [B, W] int32
    lengths: np.ndarray  # [B] int32
    finite: np.ndarray  # [B] bool
    logprobs: np.ndarray  # [B, W] float32
    step: np.ndarray  # [] int32; of all rows


class Job:
    """A request under way. Only the engine's thread changes it."""

    def __init__(
        self, request: Request, ticket: Ticket, asked: Asked, writer: Writer, tally: Tally
    ):
        """Takes a request with a value in every field."""
        self.request, self.ticket, self.asked = request, ticket, asked
        self.rounds = 0  # that it took
        self.stages = 0  # of messages, so far
        self.message_tokens = 0
        self.latents = 0
        self.is_over = False
        self._tally, self._role = tally, writer.member.role
        # When it came, when its rounds began, and its texts.
        self._times = [time.perf_counter()] * 3
        self.texts = [Text(self, index, self._stream(writer)) for index in range(request.n)]

    @property
    def group(self) -> Hashable:
        """What requests that go through the rounds together have in common."""
        return self.request.channel, self.request.rounds, self.asked.width

    def emit(self, event: Event) -> None:
        """Tells its sender."""
        if not self.is_over:
            self.ticket.emit(event)

    def begin_rounds(self) -> None:
        """Its rounds begin."""
        self._times[1] = time.perf_counter()

    def end_rounds(self, rounds: int) -> None:
        """It took so many rounds; its texts begin."""
        self._times[2], self.rounds = time.perf_counter(), rounds
        self._tally.add(
            prompt_tokens=self.asked.tokens(rounds),
            message_tokens=self.message_tokens,
            latents=self.latents,
        )

    def cancel(self) -> None:
        """Ends it, as its sender wants no more."""
        if self.is_over:
            return
        text = next(text for text in self.texts if not text.is_over)
        self._end(CANCELLED, EndEvent(text.index, CANCELLED, text.count))

    def fail(self, error: NonFiniteError | str) -> None:
        """Ends it without an answer."""
        self._end(FAILED, FailedEvent(str(error)))

    def text_ended(self) -> None:
        """Ends it once all its texts have."""
        if not all(text.is_over for text in self.texts):
            return
        answer_tokens = sum(text.count for text in self.texts)
        prompt_tokens = self.asked.tokens(self.rounds)
        self._tally.add(answer_tokens=answer_tokens)
        marks = [*self._times, time.perf_counter()]
        seconds = [after - before for before, after in itertools.pairwise(marks)]
        self._end(
            ANSWERED,
            DoneEvent(
                prompt_tokens,
                self.message_tokens,
                answer_tokens,
                self.latents,
                self.rounds,
                dict(zip(("queue", "rounds", "answer"), seconds, strict=True)),
            ),
        )

    def not_finite(self) -> None:
        """Ends it, as the numbers of a text are not finite."""
        self.fail(NonFiniteError(self._role, "answer: logits"))

    def _end(self, outcome: str, event: Event) -> None:
        if self.is_over:
            return
        self.emit(event)
        self.is_over = True
        self._tally.ended(outcome)

    def _stream(self, writer: Writer) -> TextStream:
        opening = self.asked.openings[FIRST if self.request.rounds == 1 else LATER]
        stops = (*writer.member.stop_strings, *self.request.stop)
        return TextStream(writer.texts, opening=opening, stops=stops)


class Text:
    """One of the texts of a request."""

    def __init__(self, job: Job, index: int, stream: TextStream):
        self.job, self.index, self.stream = job, index, stream
        self.has_ended = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be written of it."""
        return self.has_ended or self.job.is_over

    @property
    def count(self) -> int:
        """Tokens so far, up to the one that completes a stop string."""
        return len(self.stream.ids)

    def take(self, written: Written, row: int, end_tokens: Sequence[int]) -> None:
        """Takes what is new in a row, and emits it."""
        if not written.finite[row]:
            self.job.not_finite()
            return
        new = slice(self.count, int(written.lengths[row]))
        tokens, logprobs = (of[row, new].tolist() for of in (written.tokens, written.logprobs))
        self.stream.add(tokens, logprobs)
        if not (written.done[row] or self.stream.has_stopped):
            self._emit(self.stream.part())
            return
        is_stopped = self.stream.has_stopped or self.stream.ids[-1] in end_tokens
        self._emit(self.stream.last())
        self.job.emit(EndEvent(self.index, STOP if is_stopped else LENGTH, self.count))
        self.has_ended = True
        self.job.text_ended()

    def _emit(self, part: Part | None) -> None:
        if part is not None and (part.text or part.tokens):
            self.job.emit(TextEvent(self.index, part.text, part.tokens))


def seeds_of(jobs: Sequence[Job], size: int) -> np.ndarray:
    """The seeds of a batch [B] uint32, filled up with the last one."""
    seeds = [job.request.seed for job in jobs]
    return np.array([*seeds, *seeds[-1:] * (size - len(seeds))], np.uint32)


@jax.jit
def text_keys(seeds: jax.Array, number: jax.Array) -> jax.Array:
    """A PRNG key [B] for the n-th text of each request, from its seed [B] and n [] alone.

    These are the keys of `Answerer.keys` for the first question of a call.
    """

    def key(seed: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), 0)

    return jax.vmap(key)(seeds)
