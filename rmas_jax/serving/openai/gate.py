"""What every request passes first: its key, or its host; and what counts the replies."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmas_jax.host.errors import shown
from rmas_jax.serving.openai.chat import GONE
from rmas_jax.serving.openai.errors import ApiError
from rmas_jax.serving.openai.service import Service

OPEN = ("/", "/health", "/ready")  # paths that need no key
MODELS = "/v1/models/"
# Paths as metrics name them.
PATHS = (*OPEN, "/metrics", "/v1/chat/completions", "/v1/models", "/v1/rmas")


class Gate:
    """ASGI middleware that refuses requests without a key, and counts all replies."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app = app
        self._service = service
        self._digests = [_digest(key.encode()) for key in service.settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = GONE  # unless a reply starts

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                await error.response(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        except Exception:
            status = 500
            raise
        finally:
            self._service.metrics.requests.labels(_named(scope["path"]), str(status)).inc()

    def _check(self, path: str, headers: Headers) -> None:
        """Refuses what has neither a key nor need of one.

        Raises:
          ApiError: the key is missing or wrong, or the host is another's.
        """
        if not self._digests:
            self._check_host(headers.get("host", ""))
        elif path not in OPEN:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._is_known(key.strip()):
                raise ApiError(
                    401,
                    "the header Authorization must be `Bearer KEY` with a key of this server",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _is_known(self, key: str) -> bool:
        """Whether a key is one of the server's; takes as long for every key of a length."""
        digest = _digest(key.encode("latin-1"))
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def _check_host(self, host: str) -> None:
        """Keeps pages of other sites out, whose names can be made to lead here (DNS rebinding)."""
        hosts = self._service.settings.hosts
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if hosts and name.lower() not in hosts:
            message = f"the header Host must name one of {', '.join(hosts)}, got {shown(host)}"
            raise ApiError(403, message + "; a server with an API key may have any name")


def _digest(key: bytes) -> bytes:
    """Of a fixed length, so that comparing keys does not tell theirs."""
    return hashlib.sha256(key).digest()


def _named(path: str) -> str:
    """A path in metrics, which must be few."""
    if path.startswith(MODELS):
        return f"{MODELS}{{id}}"
    return path if path in PATHS else "other"
