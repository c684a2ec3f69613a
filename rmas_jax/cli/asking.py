"""One question after another for a team: in an engine, or with tools and retries, in pieces."""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from rmas_jax.agents.reading import PromptInput
from rmas_jax.cli.account import Account, Step
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Prompts
from rmas_jax.host.compilations import compilations
from rmas_jax.host.errors import InputError
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.groups import stage_event
from rmas_jax.serving.prompts import Layout
from rmas_jax.serving.requests import (
    DoneEvent,
    EndEvent,
    Event,
    FailedEvent,
    Request,
    StageEvent,
    TextEvent,
)
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.serving.tickets import is_last

MAX_ROWS = 16  # answers that are written at once
WIDTHS = tuple(64 * 2**k for k in range(12))  # of questions, in tokens


class Asker:
    """An answerer's team, in engines for questions of different widths."""

    def __init__(self, answerer: Answerer):
        self.answerer = answerer
        self._engines: dict[tuple[int, int], Engine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A thread that still works would end with the process in the middle of a program."""
        for engine in self._engines.values():
            engine.close(finish=False)

    @functools.cached_property
    def _layout(self) -> Layout:
        return Layout(self.answerer.team, WIDTHS, shares_starts=False)

    def events(self, request: Request) -> Iterator[tuple[Event, bool]]:
        """Yields the events of a request, each with whether anything was compiled for it."""
        found: queue.SimpleQueue[tuple[Event, int]] = queue.SimpleQueue()
        known = compilations()
        ticket = self._engine(request).submit(request)
        ticket.listen(lambda event: found.put((event, compilations())))
        while True:
            event, count = found.get()
            yield event, count > known
            known = count
            if is_last(event):
                return

    def _engine(self, request: Request) -> Engine:
        """A running engine, whose programs are compiled when they are needed."""
        width = self._layout.encode(request.question, slot_width=0).width
        key = width, request.nearest
        if key not in self._engines:
            how = self.answerer.answering
            settings = EngineSettings(
                rows=min(how.rollouts, MAX_ROWS),
                batch=1,
                widths=(width,),
                max_tokens=how.max_tokens,
                message_tokens=how.max_tokens,
                max_n=how.rollouts,
                rounds=self.answerer.rounds,
                channels=(self.answerer.method.channel or "",),
                sampling=how.sampling,
                nearest=request.nearest,
                shares_starts=False,
            )
            self._engines[key] = Engine(self.answerer.team, self.answerer.links, settings)
            self._engines[key].start()
        return self._engines[key]


def ask(
    asker: Asker,
    question: str,
    *,
    columns: Mapping[str, str] | None = None,
    seed: int,
    tolerance: float = 0.0,
    inspected: int = 0,
) -> dict[str, Any]:
    """The account of a question: answers, steps, and what crossed the edges.

    Args:
      asker: of a team over a channel, or in text.
      question: any text.
      columns: of the prompts.
      seed: of drawn answers.
      tolerance: of the early stop; not in text.
      inspected: tokens shown per latent.
    """
    account = Account(question, columns or {}, inspects=bool(inspected))
    answerer = asker.answerer
    request = Request(
        question={**account.columns, "question": question},
        tolerance=0.0 if answerer.channel is None else tolerance,
        seed=seed,
        n=answerer.answering.rollouts,
        is_watched=True,
        nearest=0 if answerer.channel is None else inspected,
    )
    how = answerer.answering
    if how.toolbox or how.answer_retry:
        answer_in_pieces(answerer, account, request)
    else:
        answer_in_engine(asker, account, request)
    account.end()
    return account.as_row


def answer_in_engine(asker: Asker, account: Account, request: Request) -> None:
    """Adds the events of an engine to an account.

    Raises:
      InputError: numbers of an agent are NaN or infinite.
    """
    compiled, tokens = False, 0
    for event, is_new in asker.events(request):
        compiled |= is_new
        match event:
            case StageEvent():
                account.stage(event)
                compiled = False
            case TextEvent(index, text, _):
                account.write(index, text)
            case EndEvent(index, _, count):
                account.write(index, "")
                tokens += count
            case DoneEvent():
                did, seconds = f"answers: {tokens} tokens", event.seconds["answer"]
                role = asker.answerer.answers_as
                account.step(Step(event.rounds, role, did, seconds, compiled))
            case FailedEvent(message):
                raise InputError(message)


def answer_in_pieces(answerer: Answerer, account: Account, request: Request) -> None:
    """Adds rounds and answers with tools or retries, which leave the device in between."""
    prompts = answerer.encode([request.question])
    if (channel := answerer.channel) is None:
        prompt, rounds = text_stages(answerer, account, prompts)
    else:
        trace = trace_rounds(
            answerer.system,
            answerer.team.agents,
            channel,
            prompts,
            rounds=answerer.rounds,
            tolerance=request.tolerance,
        )
        prompt, rounds = trace.prompt, int(trace.took[0])
        for stage in trace.stages:
            account.stage(stage_event(answerer.team, stage, nearest=request.nearest))
    for index, keys in enumerate(answerer.keys(request.seed or 0, np.arange(1))):
        known, started = compilations(), time.perf_counter()
        written = answerer.write(prompt, keys)
        seconds = time.perf_counter() - started
        did = f"answers: {written.tokens[0]} tokens"
        did += f", {written.calls[0]} tool calls" if answerer.answering.toolbox else ""
        did += ", tried again" if written.retried[0] else ""
        account.write(index, written.opening + written.texts[0])
        account.step(Step(rounds, answerer.answers_as, did, seconds, compilations() > known))


def text_stages(answerer: Answerer, account: Account, prompts: Prompts) -> tuple[PromptInput, int]:
    """Adds the rounds in text; returns what the answer is written from, and their number."""
    known = compilations()
    listened = answerer.listen(prompts)
    compiled = compilations() > known
    for message in listened.messages:
        place = message.round + 1, message.role
        tokens = int(message.tokens[0])
        text, seconds = message.texts[0], message.seconds
        account.stage(StageEvent(*place, seconds, {}, text, tokens, None, compiled=compiled))
    return listened.prompt, answerer.rounds
