"""The study of real agents with one command: models, skills, what vectors can say, the curve.

    python -m experiments.real_agents.study --out runs/real_agents

    OUT/models    downloaded models (--planner, --solver: a GGUF file, folder or hub id instead)
    OUT/skills    planner and solver, each tuned on its own part alone
    OUT/capacity  the page: accuracy against M, controls, the bound, the skills
    OUT/runs      a run for each M and seed

Every part is a process of its own, whose command is shown. The same command goes on where an
interrupted one stopped; with a larger --size, finished parts are reused.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.real_agents.fetch import MODELS
from experiments.real_agents.skills import MODEL
from rmas_jax.host.command_line import Parser


class Size(NamedTuple):
    """How much is run."""

    steps: tuple[int, ...]  # M
    seeds: tuple[int, ...]
    bound: tuple[int, ...]  # M of the fitted vectors
    items: int  # that they are fitted to
    about: str


SIZES = {
    "small": Size((4,), (0,), (4,), 8, "one M and seed"),
    "medium": Size((1, 4, 11), (0,), (1, 2, 4, 8), 16, "three M, one seed"),
    "full": Size((1, 2, 4, 8, 11), (0, 1, 2), (1, 2, 4, 8, 11), 32, "five M, three seeds"),
}
ROLES = ("planner", "solver")
SKILL_ITEMS = 128  # of validation; an answer to each costs more than a step of tuning


def parser() -> Parser:
    """The command line."""
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all parts")
    sizes = ", ".join(f"{name}: {size.about}" for name, size in SIZES.items())
    out.add_argument("--size", choices=SIZES, default="small", help=f"{sizes} (%(default)s)")
    for role in ROLES:
        out.add_argument(
            f"--{role}",
            default="smollm2",
            metavar="MODEL",
            help=f"{' or '.join(MODELS)}, which are downloaded, a GGUF file, a folder or a hub id",
        )
    out.add_argument("--dry-run", action="store_true", help="show the commands alone")
    return out


def commands(args: argparse.Namespace) -> Iterator[list[str]]:
    """The module and options of each part, in order."""
    out, size = args.out, SIZES[args.size]
    models = {role: getattr(args, role) for role in ROLES}
    if known := [name for name in MODELS if name in models.values()]:
        yield ["fetch", "--out", str(out / "models"), "--models", *known]
    sources = {
        role: str(out / "models" / model / MODELS[model].file) if model in MODELS else model
        for role, model in models.items()
    }
    # A solver that has learnt to look up one place learns to look up four; directly it guesses.
    yield skill(out, "planner", "planner", sources["planner"], steps=20, asked=False)
    yield skill(out, "solver-asked", "solver", sources["solver"], steps=60, asked=True)
    yield skill(out, "solver", "solver", tuned(out, "solver-asked"), steps=60, asked=False)
    team = [
        part for role in ROLES for part in ("--set", f"system.agents.{role}={tuned(out, role)}")
    ]
    page = ["--out", str(out / "capacity"), *team]
    yield ["free_vectors", *page, "--steps", *map(str, size.bound), "--items", str(size.items)]
    yield [
        *("capacity", *page, "--set", f"output_dir={out / 'runs'}"),
        *("--steps", *map(str, size.steps), "--seeds", *map(str, size.seeds)),
    ]


def skill(out: Path, name: str, role: str, source: str, *, steps: int, asked: bool) -> list[str]:
    """The tuning of a role's agent on its own part, of a planner that knows the question or not."""
    return [
        *("skills", "--role", role, "--model", source, "--out", str(out / "skills" / name)),
        *("--steps", str(steps), "--evidence", f"asked={str(asked).lower()}"),
        f"validation={SKILL_ITEMS}",
    ]


def tuned(out: Path, name: str) -> str:
    """The folder of an agent that has a skill."""
    return str(out / "skills" / name / MODEL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs part by part; returns the exit code of the first that fails, or 0."""
    args = parser().parse_args(arguments)
    for module, *options in commands(args):
        name = f"{__package__}.{module}"
        print(f"\n== python -m {name} {shlex.join(options)}", flush=True)
        if args.dry_run:
            continue
        started = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", name, *options], check=False)
        print(f"== {module}: {time.perf_counter() - started:.0f} s", flush=True)
        if ended.returncode:
            return ended.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
