"""Prints the plan of a run: the same as `rmas run --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence

from rmas_jax.cli.command import command_parser
from rmas_jax.cli.options import add_config_options, add_process_options
from rmas_jax.cli.run import start

DESCRIPTION = """\
Print agents, links, steps, shapes, memory and output folder of a run without running it.

The command reads agents and data, and compiles the steps for their longest batches.
"""
EXAMPLES = """\
rmas plan --config quickstart
rmas plan --config quickstart --set runtime.mesh.data=2 --set outer.phases.0.batch_size=64
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = command_parser("plan", DESCRIPTION, examples=EXAMPLES)
    add_config_options(parser)
    add_process_options(parser)
    return start(parser, parser.parse_args(arguments), dry=True)
