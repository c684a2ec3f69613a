"""A server that says what a test writes, byte by byte, in the form of the real one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rmas_jax.serving.page import load_page

TEAM: dict[str, Any] = {
    "model": "relay",
    "topology": {
        "name": "sequential",
        "order": ["planner", "critic", "solver"],
        "levels": [["planner"], ["critic"], ["solver"]],
        "edges": ["planner->critic", "critic->solver", "solver->planner"],
        "feedback": ["solver->planner"],
        "answerer": "solver",
    },
    "agents": {"planner": "embedded/planner", "critic": "embedded/critic", "solver": "mine"},
    "latent_steps": 4,
    "columns": [],
    "channels": ["latent", "text"],
    "rounds": {"default": 2, "most": 8},
    "temperature": {"default": 0.7, "most": 2.0},
    "max_tokens": {"default": 64, "most": 64},
    "nearest": {"most": 3},
}
DONE = b"data: [DONE]\r\n\r\n"


class Reply(NamedTuple):
    """What a request gets; `body` may wait for a test between two parts."""

    body: Iterable[bytes]
    status: int = 200
    headers: Mapping[str, str] = {}


def event(**fields: Any) -> bytes:
    """A chunk of a chat completion, as an event."""
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], **fields}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode()


def stage(round: int, role: str, sent: Mapping[str, Any], **fields: Any) -> bytes:
    """The end of a stage; `sent`: edge -> (norm, tokens and cosines) of each latent."""
    crossed = {
        edge: {"norms": [norm for norm, _ in latents], "nearest": [near for _, near in latents]}
        for edge, latents in sent.items()
    }
    told = {"round": round, "role": role, "seconds": 0.25, "sent": crossed, "text": None}
    return event(rmas={"stage": {**told, "tokens": 0, "change": None, **fields}})


def text(content: str) -> bytes:
    """A part of the answer."""
    return event(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": None}])


def ending(reason: str = "stop", *, rounds: int = 2, latents: int = 16, messages: int = 0) -> bytes:
    """The last events of an answer of seven tokens."""
    cost = {"rounds": rounds, "latents": latents, "message_tokens": messages}
    seconds = {"queue": 0.0, "rounds": 1.5, "answer": 0.125}
    return b"".join(
        [
            event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}]),
            event(
                usage={"prompt_tokens": 90, "completion_tokens": 7 + messages},
                rmas={"channel": "latent", **cost, "seconds": seconds},
            ),
            DONE,
        ]
    )


def refusal(status: int, message: str, **headers: str) -> Reply:
    """An error in OpenAI's form."""
    error = {"message": message, "type": "error", "param": None, "code": None}
    return Reply([json.dumps({"error": error}).encode()], status, headers)


class ScriptedServer:
    """Serves the page; `team` and `answer` are the test's to set."""

    def __init__(self) -> None:
        self.team: dict[str, Any] = TEAM
        self.team_reply: Callable[[], Reply] = lambda: Reply([json.dumps(self.team).encode()])
        self.answer: Callable[[dict[str, Any]], Reply] = lambda _: Reply([ending()])
        self.asked: list[dict[str, Any]] = []  # bodies of requests
        self.keys: list[str | None] = []  # what each request below v1 had as its key
        self.left = threading.Event()  # a client has gone before its answer was complete
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_of(server: ScriptedServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                page = load_page()
                self._send(Reply([page.html], headers=page.headers))
            elif self.path == "/v1/rmas":
                server.keys.append(self.headers["Authorization"])
                self._send(server.team_reply())
            else:
                self._send(refusal(404, f"no {self.path}"))

        def do_POST(self) -> None:
            if self.path != "/v1/chat/completions":
                return self._send(refusal(404, f"no {self.path}"))
            server.keys.append(self.headers["Authorization"])
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            return self._send(server.answer(body))

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            try:
                for part in reply.body:
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:
                server.left.set()

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    return Handler


class Gate:
    """Parts of a stream that come when a test lets them."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts
        self._open = threading.Semaphore(0)

    def let(self, count: int = 1) -> None:
        """The next parts may come."""
        self._open.release(count)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            while not self._open.acquire(timeout=0.05):
                yield b": ping\r\n\r\n"  # as the real server does; finds out who has left
            yield part


def answers(*parts: bytes) -> Callable[[dict[str, Any]], Reply]:
    """The same stream to each question."""
    return lambda _: Reply(parts)


# Of each latent: its norm, and the tokens next to it.
PLAN = [
    (3.0, [["Kenal", 0.98], ["Kekis", 0.43]]),
    (1.5, [[" Bison", 0.5], ["\n", 0.25]]),
    (4.0, [["<b>,</b>", 0.75], ["", -0.1]]),
    (2.0, [[" no", 0.25], [" one", 0.2]]),
]
ROUNDS = [
    stage(1, "planner", {"planner->critic": PLAN}),
    stage(1, "critic", {"critic->solver": PLAN}),
    stage(1, "solver", {"solver->planner": PLAN}),
    stage(2, "planner", {"planner->critic": PLAN}),
    stage(2, "critic", {"critic->solver": PLAN}, change=0.133),
]
