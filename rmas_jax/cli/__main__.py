"""The command `rmas`: a subcommand per module."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from rmas_jax import __version__
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import shown

# Command -> its module, whose `main` takes the other arguments and returns the exit code; and help.
COMMANDS = {
    "run": ("run", "train the links of a team, evaluate it, write a report"),
    "plan": ("plan", "print the steps and the memory of a run without running it"),
    "ask": ("ask", "question a trained team, and inspect the vectors on its edges"),
    "serve": ("serve", "serve a team over HTTP, as OpenAI's chat API"),
    "chat": ("chat", "talk with a team in the terminal"),
    "report": ("report", "write the report of a run folder again"),
    "compare": ("compare", "compare runs, question by question"),
    "benchmarks": ("benchmarks", "list the benchmarks, or show one and load its questions"),
    "topology": ("topology", "print and draw stages and edges"),
    "model": ("model", "load a checkpoint and generate text, as a test"),
    "convert": ("convert", "convert links from and to the released layout"),
    "role-texts": ("role_texts", "generate role texts for questions and answers"),
}


def parser() -> Parser:
    """The command line up to the command's name."""
    out = Parser(
        prog="rmas",
        description="Recursive multi-agent systems of language models in latent space.",
        epilog="commands:\n"
        + "".join(f"  {name:<12}{text}\n" for name, (_, text) in COMMANDS.items())
        + "\nexamples:\n  rmas run --config quickstart\n"
        + '  rmas ask --config quickstart --inspect 2 "QUESTION"\n'
        + "\n`rmas COMMAND --help` explains each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--version", action="version", version=f"rmas_jax {__version__}")
    out.add_argument("command", metavar="COMMAND", help=f"one of {', '.join(COMMANDS)}")
    out.add_argument(
        "arguments", metavar="...", nargs=argparse.REMAINDER, help="options of the command"
    )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code, one of `rmas_jax.host.errors`."""
    options = parser().parse_args(arguments)
    if options.command not in COMMANDS:
        parser().error(
            f"COMMAND must be one of {', '.join(COMMANDS)}, got {shown(options.command)}"
        )
    # Imports only the command's module, so that `rmas --help` starts no accelerator.
    module = importlib.import_module(f"rmas_jax.cli.{COMMANDS[options.command][0]}")
    return module.main(options.arguments)


if __name__ == "__main__":
    sys.exit(main())
