"""Shows a topology, shipped or of your own.

rmas topology show mixture
rmas topology show my_team.yaml --out my_team.svg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, say_error
from rmas_jax.host.writing import check_output_file
from rmas_jax.topology import TopologyError, load_topology, shipped_topologies
from rmas_jax.topology.draw import SUFFIXES, as_text, save_figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = Parser(
        prog="rmas topology",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show = parser.add_subparsers(dest="command", required=True).add_parser(
        "show", help="print stages and edges, and draw them if asked"
    )
    show.add_argument("topology", help=f"a YAML file, or one of {', '.join(shipped_topologies())}")
    show.add_argument("--out", metavar="FILE", help="also draw it into FILE (.svg, .png, .pdf)")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None:
            check_output_file(options.out, option="--out", error=TopologyError, suffixes=SUFFIXES)
        topology = load_topology(options.topology)
        print(as_text(topology))
        if options.out is not None:
            save_figure(topology, options.out)
    except USER_ERRORS as error:
        say_error(error)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
