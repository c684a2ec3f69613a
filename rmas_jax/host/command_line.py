"""Bounded parsing of command lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from rmas_jax.host.errors import clipped

MAX_ARGUMENTS = 10_000
ERROR_LIMIT = 500  # characters, without the usage


class Parser(argparse.ArgumentParser):
    """Argparse's parser with bounds on the length of messages and the number of arguments."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Refuses more than MAX_ARGUMENTS; see argparse."""
        args = sys.argv[1:] if args is None else list(args)
        if len(args) > MAX_ARGUMENTS:
            self.error(f"arguments must be at most {MAX_ARGUMENTS}, got {len(args)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, and exits with code 2."""
        super().error(clipped(message, ERROR_LIMIT))
