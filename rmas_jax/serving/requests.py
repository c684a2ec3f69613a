"""What the engine is asked, and what it says while it answers; values that threads hand over.

    Request --Engine.submit--> Ticket: StageEvent* (TextEvent* EndEvent){n} DoneEvent | FailedEvent

A ticket's events come in this order, but those of its n texts mix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from rmas_jax.host.errors import InputError
from rmas_jax.prompts import Question

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"  # why a text ended


class RequestError(InputError):
    """A request that this engine cannot answer, and `field`, which is the reason."""

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = field


class BusyError(Exception):
    """The queue is full, or the engine takes no more requests."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A question, and how it is to be answered; None: as the engine's settings say."""

    question: Question
    channel: str | None = None  # of `rounds.channels.CHANNELS`, or TEXT
    rounds: int | None = None
    tolerance: float = 0.0  # of the early stop over rounds; 0: none
    temperature: float | None = None  # 0: greedy
    top_p: float | None = None
    seed: int | None = None  # of drawn texts; None: one of the engine's own
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    n: int = 1  # texts, from the same latents or messages
    is_watched: bool = False  # each stage has an event
    nearest: int = 0  # of a watched request: tokens of each vector that crosses an edge


class StageEvent(NamedTuple):
    """A stage has ended."""

    round: int  # from 1
    role: str
    seconds: float
    sent: Mapping[str, Crossing]  # by edge
    text: str | None  # the message, where text crosses the edges
    tokens: int  # of the message
    change: float | None  # of what has reached the answerer, since the round before
    sweeps: int | None = None  # of parallel thinking
    compiled: bool = False  # whether the seconds include compilation


class Crossing(NamedTuple):
    """The vectors that crossed an edge."""

    norms: Sequence[float]  # [M]
    nearest: Sequence[Sequence[tuple[str, float]]]  # [M] tokens of the receiver and their cosines


class TextEvent(NamedTuple):
    """The next part of a text, and the tokens that it is made of."""

    index: int  # type: ignore[assignment]  # of the text, from 0
    text: str
    tokens: Sequence[
        tuple[str, float]
    ]  # each with its log probability before rules and temperature


class EndEvent(NamedTuple):
    """A text has ended."""

    index: int  # type: ignore[assignment]  # of the text
    reason: str  # STOP, LENGTH or CANCELLED
    tokens: int  # written, the end token included


class DoneEvent(NamedTuple):
    """A request is answered: its cost."""

    prompt_tokens: int  # that all agents have read, without slots
    message_tokens: int  # in text, between agents
    answer_tokens: int  # of all n texts
    latents: int  # vectors that crossed edges
    rounds: int  # that it took
    seconds: Mapping[str, float]  # queue, rounds, answer


class FailedEvent(NamedTuple):
    """A request cannot be answered after all: numbers of an agent are not finite."""

    message: str


Event: TypeAlias = StageEvent | TextEvent | EndEvent | DoneEvent | FailedEvent
