"""Prints and draws a topology, shipped or from a file."""

from __future__ import annotations

from collections.abc import Sequence

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.host.writing import check_output_file
from rmas_jax.topology import TopologyError, load_topology, shipped_topologies
from rmas_jax.topology.draw import SUFFIXES, as_text, save_figure

DESCRIPTION = "Print the stages and edges of a topology; with --out, also draw them."
EXAMPLES = """\
rmas topology mixture
rmas topology my_team.yaml --out my_team.svg
"""


def show(topology: str, out: str | None) -> None:
    """Prints a topology; draws it into the file `out`, if not None."""
    if out is not None:
        check_output_file(out, option="--out", error=TopologyError, suffixes=SUFFIXES)
    found = load_topology(topology)
    print(as_text(found))
    if out is not None:
        save_figure(found, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = command_parser("topology", DESCRIPTION, examples=EXAMPLES)
    parser.add_argument(
        "topology",
        metavar="TOPOLOGY",
        help=f"a YAML file, or a shipped one: {', '.join(shipped_topologies())}",
    )
    parser.add_argument("--out", metavar="FILE", help="drawing to write (.svg, .png, .pdf)")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: show(options.topology, options.out))
