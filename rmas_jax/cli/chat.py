"""A conversation with a team in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.engine_options import add_engine_options, build_engine
from rmas_jax.config import load_config
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import USER_ERRORS, print_error
from rmas_jax.host.questions import QuestionError
from rmas_jax.rounds.channels import LATENT
from rmas_jax.serving.conversation import ASSISTANT, SYSTEM, USER, Turn, question_of
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.requests import (
    BusyError,
    DoneEvent,
    FailedEvent,
    Request,
    RequestError,
    TextEvent,
)

DESCRIPTION = """\
Talk with a team: a line is a message, and the answer follows as it is written.

The team reads the whole conversation as one question, as with `rmas serve`. Ctrl-C ends an answer,
/new forgets the conversation, and Ctrl-D or /end leaves.
"""
EXAMPLES = """\
rmas chat --config quickstart
rmas chat --config mine.yaml --links links.safetensors --temperature 0.7
rmas chat --config mine.yaml --system "Answer in one word."
"""
PROMPT = "> "
NEW, LEAVE = "/new", "/end"


def parser() -> Parser:
    """The command line; its `--help` is the manual."""
    out = command_parser("chat", DESCRIPTION, examples=EXAMPLES)
    add_engine_options(out, rows=1, channels=LATENT)
    out.add_argument("--system", metavar="TEXT", help="a message before all others")
    return out


def answer(engine: Engine, turns: Sequence[Turn], seed: int) -> str | None:
    """Prints an answer as it is written, and returns it; Ctrl-C ends it early.

    None: it failed, for a reason that is printed.

    Raises:
      RequestError: the conversation is no question, or too long.
      BusyError: the engine has stopped.
    """
    ticket = engine.submit(Request(question=question_of(turns), seed=seed))
    parts: list[str] = []
    try:
        for event in ticket.events():
            if isinstance(event, TextEvent):
                parts.append(event.text)
                print(event.text, end="", flush=True)
            elif isinstance(event, FailedEvent):
                print_error(RuntimeError(event.message))
                return None
            elif isinstance(event, DoneEvent):
                seconds = sum(event.seconds.values())
                print(f"\n[{event.rounds} rounds, {event.answer_tokens} tokens, {seconds:.2f} s]")
    except KeyboardInterrupt:
        ticket.cancel()
        print("\n[ended]")
    return "".join(parts)


def talk(engine: Engine, options: argparse.Namespace) -> None:
    """Reads messages until the input ends."""
    opening = [Turn(SYSTEM, options.system)] if options.system else []
    turns = list(opening)
    while (line := next_line()) not in (None, LEAVE):
        if line == NEW:
            turns = list(opening)
        elif line:
            asked = [*turns, Turn(USER, line)]
            try:
                text = answer(engine, asked, options.seed)
            except (RequestError, BusyError) as error:
                print_error(error)
                if turns != opening:
                    print(f"{NEW} forgets the conversation", file=sys.stderr)
            else:
                turns = turns if text is None else [*asked, Turn(ASSISTANT, text)]


def next_line() -> str | None:
    """The next line of standard input without outer whitespace; None at its end."""
    try:
        return input(PROMPT if sys.stdin.isatty() else "").strip()
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    options = parser().parse_args(arguments)

    def work() -> None:
        if sys.stdin is None:
            raise QuestionError("standard input must hold messages, is closed")
        engine = build_engine(options, load_config(options.config, options.overrides))
        engine.start()
        try:
            talk(engine, options)
        finally:
            engine.close(finish=False)

    return exit_code_of(work, bad_input=(*USER_ERRORS, ValueError))
