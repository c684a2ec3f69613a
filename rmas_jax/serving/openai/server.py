"""The process that serves: connections that must hurry, and an end that finishes what runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rmas_jax.config import ConfigError
from rmas_jax.host.errors import shown
from rmas_jax.serving.openai.app import build_app
from rmas_jax.serving.openai.errors import ApiError
from rmas_jax.serving.openai.service import Service

HEADER_BYTES = 32_768
HEADER_SECONDS = 10.0  # from a connection, or a request's first byte, to the end of its headers
SEND_SECONDS = 30.0  # that a client may leave a full buffer unread
LAST_SECONDS = 10  # for connections to close once all requests are answered
CONNECTIONS = 1_000


class Deadline:
    """Calls an action unless it is stopped in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], object]):
        self._loop, self._action = loop, action
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Sets the time, unless it is set."""
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._action)

    def stop(self) -> None:
        """Lifts it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class HurriedProtocol(H11Protocol):
    """HTTP/1.1 for clients that send their headers, and read their replies, in time.

    Others lose the connection, which frees their place in the engine.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts to wait for headers."""
        super().connection_made(transport)
        self._headers = Deadline(self.loop, transport.abort)
        self._reading = Deadline(self.loop, transport.abort)
        self._headers.start(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Waits for headers until they are complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers.stop()
        else:
            self._headers.start(HEADER_SECONDS)

    def pause_writing(self) -> None:
        """Starts to wait for the client to read."""
        super().pause_writing()
        self._reading.start(SEND_SECONDS)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        self._headers.stop()
        self._reading.stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, in OpenAI's form unless a reply has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(400, msg).body).encode()
            headers = [("Content-Type", "application/json"), ("Connection", "close")]
            headers.append(("Content-Length", str(len(body))))
            reply = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (reply, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """A server that ends in two steps: SIGTERM or SIGINT lets it take no more and finish.

    Until its last reply is sent it refuses requests with 503, so that others can take over. A
    second signal ends it at once.
    """

    def __init__(self, service: Service):
        config = uvicorn.Config(
            build_app(service),
            http=HurriedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=LAST_SECONDS,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it listens, once it does."""
        await super().startup(sockets)
        for bound in sockets or ():
            print(f"serving {self._service.settings.model} at {address_of(bound)}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal."""
        del sig, frame
        if self._service.is_closing:
            self.should_exit = self.force_exit = True
            return
        self._service.is_closing = True
        threading.Thread(target=self._finish, daemon=True).start()

    def _finish(self) -> None:
        self._service.engine.close(finish=True)
        while self._service.under_way:
            time.sleep(0.05)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, which refuses connections until a server listens on it.

    Raises:
      ConfigError: there is no such address, or another process has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as undone:
            bound = undone.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            undone.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host {shown(host)} --port {port} must be a free address: {reason}"
        ) from None
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL of a socket."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, bound: socket.socket) -> None:
    """Serves on a socket until a signal; returns once all is answered.

    The engine must have been started; it is closed then.
    """
    server = Server(service)
    try:
        server.run(sockets=[bound])
    finally:
        service.engine.close(finish=False)
