"""Engines behind HTTP: of tiny teams in this process, and of the embedded agents in their own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import uvicorn
from processes import environment
from starlette.testclient import TestClient
from teams import QUESTIONS

from rmas_jax.config import load_config
from rmas_jax.interop.link_files import save_links
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.openai.app import build_app
from rmas_jax.serving.openai.server import address_of, bind
from rmas_jax.serving.openai.service import Service
from rmas_jax.serving.openai.settings import ServiceSettings
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.team import load_team, start_links

MODEL, QUICKSTART = "tiny", "quickstart"
CHAT = "/v1/chat/completions"
# Of a server of the embedded agents: few and small programs.
SIZES = ("--rows", "4", "--batch", "2", "--widths", "96", "--max-tokens", "32", "--rounds", "2")
SIZES += ("--channels", "latent")


def small(**changes: Any) -> EngineSettings:
    """Settings of an engine for a few short requests at a time."""
    how: dict[str, Any] = {
        "rows": 4,
        "batch": 2,
        "widths": (96,),
        "max_tokens": 12,
        "queue": 8,
        "rounds": 2,
    }
    return EngineSettings(**{**how, **changes})


def service_of(engine: Engine, **settings: Any) -> Service:
    """The service of an engine, as the model `tiny`."""
    return Service(engine, ServiceSettings(model=MODEL, **settings))


def client_of(engine: Engine, **settings: Any) -> TestClient:
    """A client without a socket."""
    return TestClient(build_app(service_of(engine, **settings)), raise_server_exceptions=False)


def asked(question: str = QUESTIONS[1], **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, **fields}


def wait_for(condition: Any, *, seconds: float = 60.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def running(server: uvicorn.Server) -> Iterator[str]:
    """A server in a thread, and its URL."""
    bound = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield address_of(bound)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(
    *arguments: str, cache: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process of `rmas serve` for the embedded agents, and its URL."""
    command = [sys.executable, "-m", "rmas_jax.cli", "serve", "--config", QUICKSTART, "--port", "0"]
    process = subprocess.Popen(
        [*command, *arguments],
        env={**environment(cache=cache), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (\S+) at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        yield process, found[2]
    finally:
        process.kill()
        process.communicate()


def aligned_links(folder: Path) -> str:
    """A file of links between the embedded agents, without training."""
    team = load_team(load_config(QUICKSTART).system)
    path = folder / "links.safetensors"
    save_links(path, start_links(team, start="aligned", key=jax.random.key(0)))
    return str(path)
