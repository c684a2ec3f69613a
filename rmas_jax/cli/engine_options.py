"""Command-line options of commands that keep a team resident, and the engine that they describe."""

from __future__ import annotations

import argparse

from rmas_jax.cli.ask import links_of
from rmas_jax.cli.options import add_config_options, check_limits
from rmas_jax.cli.sampling_options import SAMPLING_LIMITS, add_sampling_options, chosen_sampling
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.config.limits import MAX_TOKENS
from rmas_jax.host.errors import shown
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.rounds.channels import CHANNELS, TEXT
from rmas_jax.runs.folder import dated
from rmas_jax.runs.resources import load_run_team, use_compilation_cache
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.settings import LIMITS as ENGINE_LIMITS
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.team_texts import load_team_texts

SIZES = ("rows", "batch", "queue", "message_tokens")  # options that are fields of EngineSettings
LIMITS = {name: ENGINE_LIMITS[name] for name in (*SIZES, "rounds")} | SAMPLING_LIMITS
DEFAULTS = EngineSettings()


def add_engine_options(parser: argparse.ArgumentParser, *, rows: int, channels: str) -> None:
    """Adds configuration, links, the engine's sizes, and the defaults of requests."""
    add_config_options(parser)
    parser.add_argument("--links", metavar="PATH", help="links as in system.links, to use instead")
    meanings = ", ".join(f"{channel.name}: {channel.meaning}" for channel in CHANNELS.values())
    parser.add_argument(
        "--channels",
        default=channels,
        metavar="NAME,NAME",
        help=f"what may cross edges, the default first ({channels}; {meanings}, {TEXT})",
    )
    parser.add_argument("--rounds", type=int, metavar="R", help="the default (system.rounds)")
    group = parser.add_argument_group("engine")
    for name, default, meaning in (
        ("rows", rows, "texts written at once"),
        ("batch", min(rows, DEFAULTS.batch), "questions that go through the rounds together"),
        ("queue", DEFAULTS.queue, "requests that may wait; others are refused"),
        ("message-tokens", DEFAULTS.message_tokens, "longest message in text, between agents"),
    ):
        group.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} ({default})"
        )
    widths = ",".join(map(str, DEFAULTS.widths))
    group.add_argument(
        "--widths",
        default=widths,
        metavar="N,N",
        help=f"tokens to which questions are padded; the last is the longest question ({widths})",
    )
    group.add_argument(
        "--no-warm",
        dest="warm",
        action="store_false",
        help="start at once, and compile a program when a request is the first to need it",
    )
    add_sampling_options(parser, max_tokens=DEFAULTS.max_tokens)


def build_engine(options: argparse.Namespace, config: RunConfig) -> Engine:
    """Checks the options, then loads the team; the engine is warm, as they say, and not started.

    Raises:
      ConfigError: an option is wrong, or does not fit the team.
    """
    check_limits(options, LIMITS)
    config = dated(config)
    sizes = {name: getattr(options, name) for name in SIZES}
    texts = load_team_texts(config.system)
    default, _ = sampling_defaults(config.system.agents[texts.topology.answerer])
    settings = EngineSettings(
        **sizes,
        widths=chosen_widths(options.widths),
        max_tokens=options.max_tokens,
        rounds=options.rounds or config.system.rounds,
        channels=tuple(options.channels.split(",")),
        sampling=chosen_sampling(options, default),
    )
    if config.runtime.compilation_cache:
        use_compilation_cache()
    team = load_run_team(config, texts)
    uses_links = any(name in CHANNELS and CHANNELS[name].uses_links for name in settings.channels)
    engine = Engine(team, links_of(config, team, options.links) if uses_links else None, settings)
    if options.warm:
        engine.warm(progress=True)
    return engine


def chosen_widths(text: str) -> tuple[int, ...]:
    """The widths of `--widths`; `EngineSettings` checks their order.

    Raises:
      ConfigError: they are no numbers of tokens.
    """
    parts = text.split(",")
    widths = tuple(int(part) for part in parts if part.isdecimal() and len(part) < 10)
    if len(widths) < len(parts) or max(widths) > MAX_TOKENS:
        raise ConfigError(
            f"--widths must be whole numbers up to {MAX_TOKENS:,}, such as 64,256, got "
            f"{shown(text)}"
        )
    return widths
