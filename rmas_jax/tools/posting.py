"""Requests to web services: JSON by POST, repeated after failures that may pass."""

from __future__ import annotations

import time
from typing import Any

from rmas_jax.host.errors import InputError
from rmas_jax.host.json_rows import json_line

ANSWERED = 200  # status
WORTH_REPEATING = (429, 500, 502, 503, 504)  # too many requests; server errors


class PostError(InputError):
    """A request without a reply; the message names the address and the failure, and no key."""


class PostTimeoutError(PostError):
    """The last attempt got no reply in time."""


def post_json(
    address: str, body: Any, *, key: str, timeout_s: float, attempts: int, pause_s: float
) -> Any:
    """The reply to a request with a bearer key, of type `httpx2.Response`.

    Repeats the request after errors of network, server or rate limit.

    Args:
      address: of the service.
      body: of the request.
      key: "" sends none.
      timeout_s: of connecting, sending, and each wait for data, in one attempt.
      attempts: at most.
      pause_s: after the first attempt; doubles with each.

    Raises:
      PostError: all attempts failed, or the request was refused.
      ImportError: httpx2 is not installed.
    """
    import httpx2  # an extra

    if not key.isascii():
        raise PostError(f"{address}: the key must be ASCII")
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    failure, kind = "", PostError
    for attempt in range(attempts):
        if attempt > 0:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            response = httpx2.post(
                address, headers=headers, content=json_line(body), timeout=timeout_s
            )
        except httpx2.InvalidURL as error:
            raise PostError(f"{address}: must be the address of a service: {error}") from None
        except httpx2.TransportError as error:
            failure = type(error).__name__  # its message may quote the key
            is_late = isinstance(error, httpx2.TimeoutException)
            kind = PostTimeoutError if is_late else PostError
            continue
        if response.status_code == ANSWERED:
            return response
        failure, kind = f"status {response.status_code}", PostError
        if response.status_code not in WORTH_REPEATING:
            raise PostError(f"{address}: {failure}")
    raise kind(f"{address}: {failure} in the last of {attempts} attempts")
