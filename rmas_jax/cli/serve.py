"""Serves a team over HTTP, as OpenAI's chat API."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.engine_options import DEFAULTS, add_engine_options, build_engine
from rmas_jax.cli.options import check_limits
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.host.allocator import keep_few_arenas
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import USER_ERRORS, shown
from rmas_jax.host.reading import MEBIBYTE, read_text
from rmas_jax.serving.openai.settings import ServiceSettings

DESCRIPTION = """\
Serve a team as OpenAI's chat API: /v1/chat/completions and /v1/models, with a page at /.

Requests are answered together, with links as those of `rmas ask`. Other paths: /health (alive),
/ready (taking requests), /metrics (for Prometheus) and /v1/rmas (the team). SIGTERM and SIGINT let
the server refuse new requests with 503, finish those under way, and end; a second one ends it at
once. Without keys, which --api-key-file or RMAS_API_KEY give (one per line), everybody who reaches
the address may ask.
"""
EXAMPLES = """\
rmas serve --config quickstart
rmas serve --config mine.yaml --links links.safetensors --rows 32 --max-tokens 1024
rmas serve --config mine.yaml --host 0.0.0.0 --port 80 --api-key-file keys.txt
curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "quickstart", "messages": [{"role": "user", "content": "QUESTION"}]}'
"""
KEY = re.compile(r"[!-~]{8,512}")  # printable ASCII without spaces, as a header can hold
KEYS_VARIABLE = "RMAS_API_KEY"
ORIGIN = re.compile(r"https?://[^/\s]+|\*")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Option -> the least and the largest value.
LIMITS = {"port": (0, 65_535), "timeout": (1.0, 86_400.0), "max_body": (1, 64)}


def parser() -> Parser:
    """The command line; its `--help` is the manual."""
    out = command_parser("serve", DESCRIPTION, examples=EXAMPLES)
    add_engine_options(out, rows=DEFAULTS.rows, channels=",".join(DEFAULTS.channels))
    http = out.add_argument_group("http")
    http.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    http.add_argument("--port", type=int, default=8000, help="0: a free one (8000)")
    http.add_argument("--name", help="name of the model for clients (that of the configuration)")
    http.add_argument("--api-key-file", metavar="FILE", help="keys, one per line")
    http.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="another site whose pages may ask, such as https://example.org; repeatable",
    )
    http.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds for an answer (600)"
    )
    http.add_argument(
        "--max-body", type=int, default=1, metavar="MIB", help="size of a request's body (1)"
    )
    return out


def service_settings(options: argparse.Namespace, config: RunConfig) -> ServiceSettings:
    """How the options let an engine be served.

    Raises:
      ConfigError: an option is wrong.
    """
    check_limits(options, LIMITS)
    for origin in options.allow_origin:
        if not ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"--allow-origin must be like https://example.org or *, got {shown(origin)}"
            )
    keys = chosen_keys(options.api_key_file, os.environ.get(KEYS_VARIABLE, ""))
    if not keys and not is_loopback(options.host):
        logging.getLogger(__name__).warning(
            "--host %s without --api-key-file: everybody who reaches it may ask", options.host
        )
    is_checked = not keys and is_loopback(options.host)
    return ServiceSettings(
        model=options.name or config.name,
        keys=keys,
        agents={role: Path(path).name for role, path in config.system.agents.items()},
        hosts=tuple(dict.fromkeys((*LOOPBACK, options.host))) if is_checked else (),
        origins=tuple(options.allow_origin),
        body_bytes=options.max_body * MEBIBYTE,
        answer_seconds=options.timeout,
    )


def chosen_keys(file: str | None, variable: str) -> tuple[str, ...]:
    """The keys of a file, or of the environment's variable; empty lines and `#` lines are none.

    Raises:
      ConfigError: one cannot be a key (its place is named, not the key), or the file has none.
    """
    source = file or KEYS_VARIABLE
    text = read_text(file, at_most=MEBIBYTE, error=ConfigError) if file else variable
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if (key := line.strip()) and not key.startswith("#"):
            if not KEY.fullmatch(key):
                raise ConfigError(
                    f"{source}: line {number} must be a key of 8 to 512 printable ASCII characters "
                    f"without spaces, got {len(key)} characters"
                )
            keys.append(key)
    if file and not keys:
        raise ConfigError(f"{file} must hold a key per line, got none")
    return tuple(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, UnicodeError, ValueError):  # of IPv6, or wrong, as `bind` says
        return host == "::1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 after a signal, 2 for bad input."""
    options = parser().parse_args(arguments)

    def work() -> None:
        try:
            from rmas_jax.serving.openai.server import bind, serve
            from rmas_jax.serving.openai.service import Service
        except ModuleNotFoundError as error:
            raise ImportError(
                f"rmas serve needs the package {error.name}: pip install 'rmas_jax[serve]'"
            ) from error
        keep_few_arenas()
        config = load_config(options.config, options.overrides)
        settings = service_settings(options, config)
        with bind(options.host, options.port) as bound:
            service = Service(build_engine(options, config), settings)
            service.engine.start()
            serve(service, bound)

    return exit_code_of(work, bad_input=(*USER_ERRORS, ValueError))
