"""Errors as OpenAI's API tells them: a status, and an object that its clients read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from rmas_jax.host.errors import clipped
from rmas_jax.serving.requests import BusyError, RequestError

RETRIED = (429, 503)  # of these the same request may succeed later
# Field of an engine's request -> field of the HTTP request.
FIELDS = {
    "question": "messages",
    "channel": "rmas.channel",
    "rounds": "rmas.rounds",
    "tolerance": "rmas.tolerance",
    "is_watched": "rmas.watch",
    "nearest": "rmas.nearest",
    "columns": "rmas.columns",
}


class ApiError(Exception):
    """The reason why a request gets no answer, and how a client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.field = field  # of the request
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The object of OpenAI's form."""
        if self.status >= 500:
            kind = "server_error"
        else:
            kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        told = {"message": clipped(str(self)), "type": kind, "param": self.field, "code": self.code}
        return {"error": told}

    @property
    def response(self) -> JSONResponse:
        """The whole reply; OpenAI's clients try again as it says, and otherwise at any 5xx."""
        again = {"x-should-retry": "true" if self.status in RETRIED else "false"}
        return JSONResponse(self.body, self.status, {**again, **self.headers})


def refused(error: RequestError) -> ApiError:
    """The error of a request that an engine cannot answer."""
    field = FIELDS.get(error.field, error.field)
    code = "context_length_exceeded" if error.field == "question" else None
    message = str(error)
    if message.startswith(error.field):  # of the engine's request, by another name
        message = field + message[len(error.field) :]
    return ApiError(400, message, field=field, code=code)


def busy(error: BusyError) -> ApiError:
    """The error of a request for which an engine has no room now."""
    seconds = str(max(1, math.ceil(error.retry_after)))
    return ApiError(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": seconds})


def unavailable(message: str) -> ApiError:
    """The error of a server that takes no requests, now or any more."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": "5"})
