"""Options that the measurements of the capacity curve share, and what their reports say of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.real_agents.fetch import sha256_of
from experiments.real_agents.skill_card import RECORD, weight_digests
from rmas_jax.cli.run import exit_code
from rmas_jax.config import ConfigError, EvidenceConfig, RunConfig, load_config
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.reading import read_json
from rmas_jax.host.writing import check_output_folder
from rmas_jax.links import Links
from rmas_jax.team import Team, load_links_for

CONFIG = "experiments/configs/real_agents/curve.yaml"
PLACES = ("system.agents", "output_dir")  # fields that are paths
LARGEST = 2**28  # bytes of a report


def measurement_parser(description: str | None) -> Parser:
    """A command line with a folder of reports and a team."""
    out = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the report")
    out.add_argument("--config", default=CONFIG, metavar="FILE", help="of the team (%(default)s)")
    out.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    return out


def measured(args: argparse.Namespace, measure: Callable[[argparse.Namespace], None]) -> int:
    """Measures into --out; returns the exit code of a run."""

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        measure(args)

    return exit_code(work)


def add_numbers(parser: Parser, *numbers: tuple[str, int, str]) -> None:
    """Adds options of whole numbers: name, default, and what it is. Those of 0 may be 0."""
    for name, default, what in numbers:
        kind, text = at_least(min(default, 1)), f"{what} (%(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def at_least(lowest: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from here on."""

    def whole(text: str) -> int:
        if (number := int(text)) < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {number}")
        return number

    whole.__name__ = "int"  # in an error of argparse
    return whole


def check_batch(parser: Parser, args: argparse.Namespace, *names: str) -> None:
    """Ends with an error where --batch does not divide one of these, or one is below 2.

    With one item alone, there is none whose message could be the other one.
    """
    for name in names:
        number = getattr(args, name.replace("-", "_"))
        if number < 2:
            parser.error(f"--{name} must be at least 2, got {number}")
        if args.batch < 1 or number % args.batch:
            parser.error(f"--batch must divide --{name} ({number}), got {args.batch}")


def configured(args: argparse.Namespace) -> tuple[RunConfig, EvidenceConfig]:
    """The configuration of the team, and the dials of its data.

    Raises:
      ConfigError: it is not usable, or has no such data.
    """
    config = load_config(args.config, args.set)
    if config.data.evidence is None:
        raise ConfigError(f"{args.config}: data.evidence must be set, got null")
    return config, config.data.evidence


def check_unknown(dials: EvidenceConfig) -> None:
    """Checks that the planner does not know the question, so that its message holds all facts.

    Raises:
      ConfigError: it does.
    """
    if dials.asked:
        raise ConfigError("data.evidence.asked must be false, as all questions are asked, got true")


def with_steps(config: RunConfig, count: int) -> RunConfig:
    """The same with M latent steps."""
    system = dataclasses.replace(config.system, latent_steps=count)
    return dataclasses.replace(config, system=system)


def links_of_seeds(team: Team, config: RunConfig, paths: Sequence[str]) -> list[Links]:
    """The links in some files, which must fit the team.

    Raises:
      ConfigError, CheckpointError: see `load_links_for`.
    """
    return [load_links_for(team, dataclasses.replace(config.system, links=path)) for path in paths]


def settings_of(args: argparse.Namespace, config: RunConfig, *names: str) -> dict[str, Any]:
    """The settings of a report, without paths of the machine.

    Agents are known by the digests of their skills' records, or else of their weights (by name,
    where they are not on this machine), links by their own.

    Args:
      args: of the command line.
      config: that of the team.
      names: of further options.
    """
    return {
        "config": Path(args.config).name,
        "evidence": config.data.evidence and dataclasses.asdict(config.data.evidence),
        "set": [field for field in args.set if not field.startswith(PLACES)],
        "agents": {role: identity(agent) for role, agent in config.system.agents.items()},
        **{name: getattr(args, name) for name in names},
    }


def identity(agent: str) -> str | dict[str, str]:
    """The digest of the record of an agent's skill, of the weights of one without, or a name."""
    record = Path(agent) / RECORD
    if record.is_file():
        return sha256_of(record)
    return weight_digests(Path(agent)) if Path(agent).exists() else agent


def skills_of(config: RunConfig) -> dict[str, Any]:
    """The records of the agents' skills, by role, of those that have one."""
    records = {role: Path(agent) / RECORD for role, agent in config.system.agents.items()}
    return {role: json.loads(path.read_text()) for role, path in records.items() if path.is_file()}


def digests(paths: Sequence[str]) -> list[str]:
    """The digests of files of links.

    Raises:
      ConfigError: one is not there, or two are the same.
    """
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise ConfigError(f"--links must be files, got {', '.join(missing)}")
    found = {path: sha256_of(Path(path)) for path in paths}
    if len(paths) != len({*found.values()}):
        raise ConfigError(f"--links must be different files, got {', '.join(paths)}")
    return [*found.values()]


def read_report(path: Path) -> dict[str, Any] | None:
    """A report, if it is there.

    Raises:
      ConfigError: it cannot be read, or is none.
    """
    if not path.exists():
        return None
    report = read_json(path, at_most=LARGEST, error=ConfigError)
    settings, rows = report.get("settings"), report.get("rows")
    if not (isinstance(settings, dict) and isinstance(rows, list | dict)):
        raise ConfigError(f"{path}: must be a report, with settings and rows; move it away")
    return report


def rows_of_earlier(path: Path, settings: Mapping[str, Any], *, but: str = "") -> Any:
    """The rows of the report at a path; None where there is none. `but` says what may differ.

    Raises:
      ConfigError: it was made with other settings, so that its rows would be lost.
    """
    if (report := read_report(path)) is None:
        return None
    if others := [name for name in settings if settings[name] != report["settings"].get(name)]:
        raise ConfigError(
            f"{path}: made with other {', '.join(others)}; --out must be another folder, or these "
            f"the same{but and f' ({but})'}"
        )
    return report["rows"]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(report, indent=1) + "\n")
