"""Options that commands share: the configuration, limits, several processes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rmas_jax.config import ConfigError
from rmas_jax.config.files import MAX_OVERRIDES
from rmas_jax.config.paths import shipped_configs
from rmas_jax.host.errors import shown
from rmas_jax.host.processes import join


class Collect(argparse.Action):
    """Collects an option's values; argparse's `append` copies all of them for each one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        values_before = getattr(namespace, self.dest)
        if not values_before:
            setattr(namespace, self.dest, [values])
        elif len(values_before) < MAX_OVERRIDES:
            values_before.append(values)
        else:
            parser.error(f"{option_string} must be given at most {MAX_OVERRIDES} times, got more")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE` and `--set KEY=VALUE` (as `overrides`)."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help=f"YAML file of the run, its URL, or a shipped one: {', '.join(shipped_configs())}",
    )
    parser.add_argument(
        "--set",
        action=Collect,
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="changes a field, for example --set system.latent_steps=6; repeatable",
    )


def option_name(name: str) -> str:
    """An option's name on the command line: max_tokens -> --max-tokens."""
    return f"--{name.replace('_', '-')}"


def check_limits(options: argparse.Namespace, limits: Mapping[str, tuple[float, float]]) -> None:
    """Checks the numbers of a command line; skips missing options (None).

    Args:
      options: of the command line.
      limits: option -> minimum and maximum.

    Raises:
      ConfigError: names the option, its value and the allowed range.
    """
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:  # NaN is not
            raise ConfigError(
                f"{option_name(name)} must be at least {least:,} and at most {most:,}, got "
                f"{shown(value)}"
            )


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that identify this process among several."""
    group = parser.add_argument_group(
        "several processes",
        "One per host, all with the same command except for --process. They share one mesh over\n"
        "all their devices, and OUTPUT_DIR.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="let JAX detect the three, on TPU pods, Slurm or Open MPI",
    )


def join_processes(args: argparse.Namespace) -> None:
    """Joins the other processes, if the options name any; must precede all JAX calls.

    If a process is missing, JAX aborts the others after five minutes (`processes.JOIN_S`).

    Raises:
      ConfigError: an option is missing or wrong, or JAX cannot detect the processes.
    """
    given = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
    missing = [option_name(name) for name, value in given.items() if value is None]
    if args.distributed:
        if len(missing) < len(given):
            raise ConfigError(
                "--coordinator, --processes and --process must be unset with --distributed"
            )
    elif len(missing) == len(given):
        return
    else:
        _check_processes(missing, **given)
    try:
        join(**given)
    except (ValueError, RuntimeError) as error:
        how = "--distributed" if args.distributed else f"--coordinator {args.coordinator}"
        raise ConfigError(f"{how}: cannot join the other processes: {error}") from None


def _check_processes(missing: list[str], coordinator: str, processes: int, process: int) -> None:
    if missing:
        raise ConfigError(
            "--coordinator, --processes and --process must be given together, got no "
            f"{' and '.join(missing)}"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.1:8476, got {shown(coordinator)}"
        )
    if processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {processes}")
    if not 0 <= process < processes:
        raise ConfigError(
            f"--process must be at least 0 and below --processes {processes}, got {process}"
        )
