"""The endpoint `/v1/chat/completions`: from a request's body to the end of its reply."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from rmas_jax.serving.openai.body import read_object
from rmas_jax.serving.openai.errors import ApiError, busy, refused, unavailable
from rmas_jax.serving.openai.replies import Reply
from rmas_jax.serving.openai.schemas import ChatRequest, chat_request, engine_request
from rmas_jax.serving.openai.service import CLOSING, Service
from rmas_jax.serving.requests import (
    CANCELLED,
    BusyError,
    DoneEvent,
    EndEvent,
    Event,
    FailedEvent,
    RequestError,
    TextEvent,
)
from rmas_jax.serving.tickets import Ticket

PING_SECONDS = 15  # between comments in a stream, for proxies that end silent ones
GONE = 499  # status of a reply that nobody reads, in metrics
END = "[DONE]"  # of a stream


class ChatEndpoint:
    """Answers chat requests. Whatever ends a reply, it leaves no place of the engine taken."""

    def __init__(self, service: Service):
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        started, service = time.perf_counter(), self._service
        deadline = asyncio.get_running_loop().time() + service.settings.answer_seconds
        service.check_open()
        request = Request(scope, receive)
        how = service.settings
        raw = await read_object(request, at_most=how.body_bytes, seconds=how.body_seconds)
        chat = chat_request(raw)
        service.model(chat.model)
        service.under_way += 1
        try:
            ticket = await self._submit(chat)
            try:
                events = self._timed(events_of(ticket, deadline), started)
                response = await self._response(request, chat, events)
                await response(scope, receive, send)
            finally:
                ticket.cancel()
        finally:
            service.under_way -= 1
            service.metrics.seconds.observe(time.perf_counter() - started)

    async def _submit(self, chat: ChatRequest) -> Ticket:
        """Hands a request to the engine, which encodes it, in a thread."""
        service = self._service
        try:
            request = engine_request(chat, columns=service.engine.columns)
            return await run_in_threadpool(service.engine.submit, request)
        except RequestError as error:
            raise refused(error) from None
        except BusyError as error:
            service.check_open()  # has another reason
            raise busy(error) from None

    async def _response(
        self, request: Request, chat: ChatRequest, events: AsyncIterator[Event]
    ) -> Response:
        channel = (chat.rmas and chat.rmas.channel) or self._service.engine.settings.channels[0]
        reply = Reply(chat, channel)
        if chat.stream:
            return EventSourceResponse(_streamed(reply, events), ping=PING_SECONDS, sep="\n")
        if (found := await unless_gone(request, events)) is None:
            return Response(status_code=GONE)
        return JSONResponse(reply.whole(found))

    async def _timed(self, events: AsyncIterator[Event], started: float) -> AsyncIterator[Event]:
        """The same events; notes when the first text comes."""
        is_first = True
        async for event in events:
            if is_first and isinstance(event, TextEvent):
                is_first = False
                seconds = time.perf_counter() - started
                self._service.metrics.first_text_seconds.observe(seconds)
            yield event


async def events_of(ticket: Ticket, deadline: float) -> AsyncIterator[Event]:
    """The events of an answer in the time of the running loop, until a DoneEvent.

    Raises:
      ApiError: the answer failed, is not complete at the deadline, or was cancelled elsewhere.
    """
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def tell(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(told.put_nowait, event)

    ticket.listen(tell)
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                event = await told.get()
        except TimeoutError:
            raise ApiError(
                504, "the answer took too long, and was given up", code="timeout"
            ) from None
        if isinstance(event, FailedEvent):
            raise ApiError(500, event.message, code="failed")
        if isinstance(event, EndEvent) and event.reason == CANCELLED:
            raise unavailable(CLOSING)
        yield event
        if isinstance(event, DoneEvent):
            return


async def unless_gone(request: Request, events: AsyncIterator[Event]) -> list[Event] | None:
    """All events, or None if the client goes away before the last."""

    async def collected() -> list[Event]:
        return [event async for event in events]

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(collected()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        watch.cancel()


async def _streamed(reply: Reply, events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The data of server-sent events: chunks, then the end, or an error in its place."""
    for chunk in reply.opening():
        yield _line(chunk)
    try:
        async for event in events:
            for chunk in reply.chunks(event):
                yield _line(chunk)
    except ApiError as error:
        yield _line(error.body)
        return
    yield END


def _line(value: dict[str, Any]) -> str:
    """JSON in ASCII: some clients break lines at other characters, too."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
