"""How tokens are chosen, as options of a command line."""

from __future__ import annotations

import argparse
import dataclasses

from rmas_jax.cli.options import option_name
from rmas_jax.config.limits import MAX_SEED, MAX_TOKENS
from rmas_jax.models.generation import SamplingConfig

# Option -> the least and the largest value; the rules are checked as a whole.
SAMPLING_LIMITS = {"max_tokens": (1, MAX_TOKENS), "seed": (0, MAX_SEED)}
RULES = [field.name for field in dataclasses.fields(SamplingConfig)]


def add_sampling_options(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Adds a group with an option for each rule, `--greedy`, `--seed` and `--max-tokens`."""
    rules = parser.add_argument_group("how tokens are chosen")
    rules.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"of a text, at most ({max_tokens})",
    )
    rules.add_argument("--greedy", action="store_true", help="always the likeliest token")
    rules.add_argument(
        "--temperature", type=float, metavar="T", help="divides the logits; 0 is greedy"
    )
    rules.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest; 0 is all")
    rules.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest that hold probability P"
    )
    rules.add_argument(
        "--min-p", type=float, metavar="P", help="only those with P times the best one's"
    )
    rules.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1, repeats are less likely"
    )
    rules.add_argument("--seed", type=int, default=0, help="of the draws (0)")


def chosen_sampling(options: argparse.Namespace, default: SamplingConfig) -> SamplingConfig:
    """The checkpoint's rules with what the command line says instead.

    Raises:
      ValueError: options that contradict each other, or are of no use.
    """
    given = {rule: getattr(options, rule) for rule in RULES if getattr(options, rule) is not None}
    if options.greedy:
        if given.get("temperature"):
            raise ValueError(f"--greedy and --temperature {given['temperature']}: choose one")
        given["temperature"] = 0.0
    sampling = dataclasses.replace(default, **given)
    idle = [option_name(rule) for rule in ("top_k", "top_p", "min_p") if rule in given]
    if idle and sampling.temperature == 0:
        raise ValueError(f"{', '.join(idle)}: of no use while decoding is greedy; --temperature?")
    return sampling
