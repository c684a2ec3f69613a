"""Replies in OpenAI's form from the events of a request: whole, or chunk by chunk.

    StageEvent   a chunk without choices whose `rmas.stage` it is
    TextEvent    a chunk whose choice has the text as `delta`
    EndEvent     a chunk whose choice has the `finish_reason`
    DoneEvent    a last chunk without choices, with `usage` and `rmas` where they are asked for

A whole reply holds the same, of a watched request with all stages in `rmas.stages`.
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from rmas_jax.serving.openai.schemas import ChatRequest
from rmas_jax.serving.requests import DoneEvent, EndEvent, Event, StageEvent, TextEvent

LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own stand-in
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply to a request."""

    chat: ChatRequest
    channel: str  # that the request is answered in
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, events: Sequence[Event]) -> Json:
        """The whole reply; the last event is a DoneEvent."""
        done = events[-1]
        assert isinstance(done, DoneEvent)
        stages = [_stage(event) for event in events if isinstance(event, StageEvent)]
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(i, events) for i in range(self.chat.n)],
            "usage": _usage(done),
            "rmas": {**self._account(done), **({"stages": stages} if stages else {})},
        }

    def opening(self) -> Iterator[Json]:
        """The chunks before all events: each choice is an assistant's."""
        for i in range(self.chat.n):
            yield self._chunk([_delta(i, {"role": "assistant", "content": ""})])

    def chunks(self, event: Event) -> Iterator[Json]:
        """The chunks of an event."""
        if isinstance(event, StageEvent):
            yield self._chunk([], rmas={"stage": _stage(event)})
        elif isinstance(event, TextEvent):
            logprobs = _logprobs([event]) if self.chat.logprobs else None
            yield self._chunk([_delta(event.index, {"content": event.text}, logprobs=logprobs)])
        elif isinstance(event, EndEvent):
            yield self._chunk([_delta(event.index, {}, finish_reason=event.reason)])
        elif isinstance(event, DoneEvent):
            rmas = {"rmas": self._account(event)} if self.chat.rmas else {}
            if rmas or self._has_usage:
                usage = {"usage": _usage(event)} if self._has_usage else {}
                yield self._chunk([], **rmas, **usage)

    @property
    def _has_usage(self) -> bool:
        options = self.chat.stream_options
        return options is not None and options.include_usage

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.chat.model}

    def _chunk(self, choices: list[Json], **more: Any) -> Json:
        usage = {"usage": None} if self._has_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": choices, **usage, **more}

    def _choice(self, index: int, events: Sequence[Event]) -> Json:
        texts = [x for x in events if isinstance(x, TextEvent) and x.index == index]
        (end,) = (x for x in events if isinstance(x, EndEvent) and x.index == index)
        content = "".join(event.text for event in texts)
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": _logprobs(texts) if self.chat.logprobs else None,
            "finish_reason": end.reason,
        }

    def _account(self, done: DoneEvent) -> Json:
        """How the team worked, and its cost beside OpenAI's usage."""
        return {
            "channel": self.channel,
            "rounds": done.rounds,
            "latents": done.latents,
            "message_tokens": done.message_tokens,
            "seconds": dict(done.seconds),
        }


def _delta(
    index: int, delta: Json, *, logprobs: Json | None = None, finish_reason: str | None = None
) -> Json:
    """The choice of a chunk."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _stage(event: StageEvent) -> Json:
    return {
        **event._asdict(),
        "change": None if event.change is None else _finite(event.change),
        "sent": {
            edge: {
                "norms": [_finite(norm) for norm in crossing.norms],
                "nearest": [
                    [[text, _finite(cosine)] for text, cosine in row] for row in crossing.nearest
                ],
            }
            for edge, crossing in event.sent.items()
        },
    }


def _finite(number: float) -> float | None:
    """A number as JSON has it."""
    return float(number) if math.isfinite(number) else None


def _logprobs(texts: Sequence[TextEvent]) -> Json:
    """OpenAI's object of the tokens of texts; bytes of parts of a character are not known."""
    tokens = [token for event in texts for token in event.tokens]
    return {
        "content": [
            {
                "token": text,
                "logprob": max(float(logprob), LEAST_LOGPROB),
                "bytes": None if "\ufffd" in text else list(text.encode()),
                "top_logprobs": [],
            }
            for text, logprob in tokens
        ],
        "refusal": None,
    }


def _usage(done: DoneEvent) -> Json:
    """OpenAI's usage; messages between agents are what a reasoning model's thoughts are there."""
    written = done.message_tokens + done.answer_tokens
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": done.prompt_tokens + written,
        "completion_tokens_details": {"reasoning_tokens": done.message_tokens},
    }
