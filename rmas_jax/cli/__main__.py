"""The command `rmas`: one name for all commands, each in a module of its own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from rmas_jax import __version__
from rmas_jax.host.command_line import Parser

# Command -> its module, whose `main` takes the other arguments and returns the exit code; and help.
COMMANDS = {
    "run": ("run", "train the links of a team, evaluate it, write a report"),
    "ask": ("ask", "question a trained team, and look at what crosses its edges"),
    "report": ("report", "write the report of a run folder anew"),
    "model": ("model", "let a checkpoint write, to see that it works"),
    "topology": ("topology", "show and draw who works with whom"),
    "convert": ("convert", "convert links from and to the released layout"),
    "role-texts": ("role_texts", "make texts for roles that have none"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, or 2 for bad input (others: see the command)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser(
        prog="rmas",
        description="Recursive multi-agent systems of language models in latent space.",
        epilog="commands:\n"
        + "".join(f"  {name:<12}{text}\n" for name, (_, text) in COMMANDS.items())
        + "\nrmas COMMAND --help says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rmas_jax {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=", ".join(COMMANDS))
    command = parser.parse_args(arguments[:1]).command
    # Commands import what they need: `rmas --help` waits for no accelerator.
    module = importlib.import_module(f"rmas_jax.cli.{COMMANDS[command][0]}")
    return module.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
