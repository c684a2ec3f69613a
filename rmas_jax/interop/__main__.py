"""Converts a link's state dict between torch's format and safetensors, without running pickles.

python -m rmas_jax.interop convert outer_12.pt outer_12.safetensors
python -m rmas_jax.interop convert outer_12.safetensors outer_12.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rmas_jax.interop import read_state, write_state
from rmas_jax.models import CheckpointError

BAD_INPUT = 2  # exit code


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m rmas_jax.interop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="read SRC, write DST, and list the tensors")
    convert.add_argument("src", metavar="SRC", help="a .pt or .safetensors file")
    convert.add_argument("dst", metavar="DST", help="the file to write, .pt or .safetensors")
    options = parser.parse_args(arguments)
    try:
        state = read_state(options.src)
        write_state(options.dst, state)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    for name, array in state.items():
        print(f"{name:<24} {array.dtype.name:<9} {list(array.shape)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
