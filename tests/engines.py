"""Small engines, and all events of a ticket."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmas_jax.serving.engine import Engine
from rmas_jax.serving.requests import (
    CANCELLED,
    DoneEvent,
    EndEvent,
    FailedEvent,
    Request,
    StageEvent,
    TextEvent,
)
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.serving.tickets import Ticket

MAX_TOKENS = 12
SETTINGS = EngineSettings(
    rows=4,
    batch=4,
    widths=(16, 80),
    max_tokens=MAX_TOKENS,
    message_tokens=MAX_TOKENS,
    rounds=2,
    max_n=4,
    nearest=3,
    steps_at_once=3,
)
WORDS = ("a", "b", "the", "parcel", "from", "to", "does", "where")


def question(number: int) -> str:
    """One of many ragged questions."""
    first, second = WORDS[number % 8], WORDS[number * 3 % 7]
    return " ".join([first, second, first] * (1 + number % 3) + ["?"] * (number % 3))


def with_more_ends(team: Any) -> Any:
    """The team whose answerer also ends texts at some words, so that lengths differ."""
    role = team.system.topology.answerer
    member = team.members[role]
    ends = member.tokenizer(" ".join(WORDS[:3]), add_special_tokens=False)["input_ids"]
    member = dataclasses.replace(member, end_tokens=(*member.end_tokens, *set(ends)))
    return dataclasses.replace(team, members={**team.members, role: member})


@dataclasses.dataclass
class Collected:
    """The events of a ticket; those of its texts joined."""

    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    tokens: dict[int, list[tuple[str, float]]] = dataclasses.field(default_factory=dict)
    ends: dict[int, tuple[str, int]] = dataclasses.field(default_factory=dict)
    stages: list[StageEvent] = dataclasses.field(default_factory=list)
    done: DoneEvent | None = None
    failed: str | None = None
    is_cancelled: bool = False

    @property
    def facts(self) -> Any:
        """All that does not depend on time."""
        done = self.done and self.done._replace(seconds={})
        stages = [stage._replace(seconds=0.0) for stage in self.stages]
        return self.texts, self.tokens, self.ends, stages, done, self.failed


def collect(ticket: Ticket) -> Collected:
    """Waits for all events of a ticket; checks their order."""
    found = Collected()
    for event in ticket.events():
        assert not (found.done or found.failed or found.is_cancelled), "an event after the last"
        match event:
            case StageEvent():
                assert not found.texts
                found.stages.append(event)
            case TextEvent(index, text, tokens):
                assert index not in found.ends and (text or tokens)
                found.texts[index] = found.texts.get(index, "") + text
                found.tokens.setdefault(index, []).extend(tokens)
            case EndEvent(index, reason, tokens):
                found.ends[index] = reason, tokens
                found.is_cancelled = reason == CANCELLED
            case DoneEvent():
                assert len(found.ends) == ticket.request.n
                found.done = event
            case FailedEvent(message):
                found.failed = message
    return found


def ask(engine: Engine, text: Any = "from a to b", **options: Any) -> Collected:
    """A request from its start to its end."""
    return collect(engine.submit(Request(question=text, **options)))
