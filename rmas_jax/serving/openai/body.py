"""The body of a request: read within bounds of size and time, then as strict JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from rmas_jax.host.errors import clipped, shown
from rmas_jax.host.reading import size
from rmas_jax.serving.openai.errors import ApiError

JSON_TYPE = "application/json"
DROPPED = 16  # times the limit: so much of a larger body is read all the same, see `read_body`


async def read_object(request: Request, *, at_most: int, seconds: float) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
      ApiError: it is not JSON by its header, is too large or too slow, or is no strict JSON.
      ClientDisconnect: there is nobody to tell.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:  # also: a page of another origin could send any other without a question
        raise ApiError(415, f"Content-Type must be {JSON_TYPE}, got {shown(kind)}")
    try:
        async with asyncio.timeout(seconds):
            raw = await read_body(request, at_most=at_most)
    except TimeoutError:
        message = f"the body must arrive within {seconds:g} s, got a part of it"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    return strict_object(raw)


async def read_body(request: Request, *, at_most: int) -> bytes:
    """The bytes of a body.

    Of a larger one the rest is read and dropped: a client that is still sending reads no reply. One
    that goes on for too long loses its connection.
    """
    raw, total = bytearray(), 0
    async for chunk in request.stream():
        total += len(chunk)
        if total <= at_most:
            raw += chunk
        else:
            raw.clear()
            if total > DROPPED * at_most:
                break
    if total > at_most:
        message = f"the body must be at most {size(at_most)}, got more"
        raise ApiError(413, message, headers={"Connection": "close"})
    return bytes(raw)


def strict_object(raw: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 with distinct keys and finite numbers.

    Raises:
      ApiError: the bytes hold something else.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, "the body must be JSON, got too deep nesting") from None
    except ValueError as error:  # of the decoder, of UTF-8, of long integers, of the hooks
        reason = clipped(str(error), 200)
        raise ApiError(400, f"the body must be strict JSON in UTF-8: {reason}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, got {shown(value)}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two that are alike, readers disagree on which counts."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"keys must be distinct, got {shown(key)} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"numbers must be finite, got {name}")
