"""Command-line options for sampling."""

from __future__ import annotations

import argparse
import dataclasses

from rmas_jax.cli.options import option_name
from rmas_jax.config.limits import MAX_SEED, MAX_TOKENS
from rmas_jax.models.generation import SamplingConfig

# Option -> minimum and maximum; `SamplingConfig` checks the rules.
SAMPLING_LIMITS = {"max_tokens": (1, MAX_TOKENS), "seed": (0, MAX_SEED)}
RULES = [field.name for field in dataclasses.fields(SamplingConfig)]


def add_sampling_options(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds a group with an option for each rule, `--greedy`, `--seed` and `--max-tokens`."""
    rules = parser.add_argument_group("sampling")
    rules.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"longest text ({max_tokens})",
    )
    rules.add_argument("--greedy", action="store_true", help="always the likeliest token")
    rules.add_argument(
        "--temperature", type=float, metavar="T", help="divides the logits; 0 is greedy"
    )
    rules.add_argument(
        "--top-k", type=int, metavar="K", help="only the K likeliest tokens; 0 is all"
    )
    rules.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest tokens of total probability P"
    )
    rules.add_argument(
        "--min-p", type=float, metavar="P", help="only tokens with P times the best probability"
    )
    rules.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1, repeats are less likely"
    )
    rules.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")


def chosen_sampling(options: argparse.Namespace, default: SamplingConfig) -> SamplingConfig:
    """The rules of `default`, overridden by those of the command line.

    Raises:
      ValueError: options contradict each other, or have no effect.
    """
    given = {rule: getattr(options, rule) for rule in RULES if getattr(options, rule) is not None}
    if options.greedy:
        if given.get("temperature"):
            raise ValueError(
                f"--temperature must be 0 or unset with --greedy, got {given['temperature']}"
            )
        given["temperature"] = 0.0
    sampling = dataclasses.replace(default, **given)
    idle = [option_name(rule) for rule in ("top_k", "top_p", "min_p") if rule in given]
    if idle and sampling.temperature == 0:
        raise ValueError(
            f"--temperature must be above 0 with {', '.join(idle)}, got greedy decoding"
        )
    return sampling
