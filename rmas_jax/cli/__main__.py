"""The command `rmas`: one name for all commands, each in its own module."""

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
    "plan": ("plan", "print what a run would do, and the memory that takes"),
    "ask": ("ask", "question a trained team, and look at what crosses its edges"),
    "report": ("report", "write the report of a run folder again"),
    "benchmarks": ("benchmarks", "list the benchmarks, or show one and load its questions"),
    "topology": ("topology", "show and draw who works with whom"),
    "model": ("model", "let a checkpoint write, to see that it works"),
    "convert": ("convert", "convert links from and to the released layout"),
    "role-texts": ("role_texts", "make texts for roles that have none"),
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
    out.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="of the command")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code, one of `rmas_jax.host.errors`."""
    options = parser().parse_args(arguments)
    if options.command not in COMMANDS:
        parser().error(
            f"COMMAND must be one of {', '.join(COMMANDS)}, got {shown(options.command)}"
        )
    # Each command has its own imports, so that `rmas --help` does not start an accelerator.
    module = importlib.import_module(f"rmas_jax.cli.{COMMANDS[options.command][0]}")
    return module.main(options.arguments)


if __name__ == "__main__":
    sys.exit(main())
