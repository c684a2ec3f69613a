"""The study of real agents with one command: models, skills, aligned links, the curve.

    python -m experiments.real_agents.study --out runs/real_agents

    OUT/models     downloaded models (--planner, --solver: a GGUF file, folder or hub id instead)
    OUT/skills     planner and solver, each tuned on its own part alone
    OUT/alignment  a run for each seed of the links; agents read their texts once for all of them
    OUT/curve      the page: accuracy against M, trained links, controls, bounds, the skills

Every part is a process of its own, whose command is shown; at the end stands what each took. The
same command goes on where an interrupted one stopped, and finished parts are reused. Another --size
asks about other messages: a curve of the earlier one must be moved away first.
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

from experiments.real_agents.curve import REPORT
from experiments.real_agents.fetch import MODELS
from experiments.real_agents.options import CONFIG, read_report
from experiments.real_agents.skills import MODEL
from rmas_jax.host.command_line import Parser
from rmas_jax.reporting.table import Table
from rmas_jax.run_files import RunFiles


class Size(NamedTuple):
    """How much is run."""

    about: str
    steps: tuple[int, ...]  # M
    seeds: int  # of aligned links
    messages: int  # with all questions about each
    trainings: tuple[str, ...]  # of `trials`
    bound: tuple[int, ...] = ()  # M of the fitted vectors; none: they are not measured
    fitted: int = 16  # items that these are fitted to
    is_probed: bool = False
    batch: int = 16  # messages at once


STEPS = (1, 2, 4, 8, 11)
SIZES = {
    "small": Size("two M, one seed", (4, 8), 1, 64, ("words",)),
    "medium": Size("five M, two seeds", STEPS, 2, 128, ("words",), bound=STEPS),
    "gpu": Size("two M, three seeds, for one GPU of 80 GB", (4, 8), 3, 256, ("words",), batch=32),
    "full": Size(
        "five M, three seeds, four trainings",
        STEPS,
        3,
        256,
        ("words", "states", "answers", "states_adapter"),
        bound=STEPS,
        fitted=32,
        is_probed=True,
    ),
}
ROLES = ("planner", "solver")
SKILL_ITEMS = 128  # of validation; an answer to each costs more than a step of tuning


class Part(NamedTuple):
    """A process of the study."""

    name: str
    module: str
    options: list[str]


def parser() -> Parser:
    """The command line."""
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of all parts")
    sizes = "; ".join(f"{name}: {size.about}" for name, size in SIZES.items())
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


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """All parts, in order."""
    out, size = args.out, SIZES[args.size]
    models = {role: getattr(args, role) for role in ROLES}
    if known := [name for name in MODELS if name in models.values()]:
        yield own("fetch", "--out", str(out / "models"), "--models", *known)
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
    for seed in range(size.seeds):
        yield alignment(out / "alignment", seed, team)
    page = ["--out", str(out / "curve"), *team]
    links = ["--links", *(str(aligned(out / "alignment", seed)) for seed in range(size.seeds))]
    if size.bound:
        steps = ["--steps", *map(str, size.bound)]
        yield own("free_vectors", *page, *steps, "--items", str(size.fitted))
    if size.is_probed:
        yield own("probe", *page, *links)
    yield own(
        *("curve", *page, *links, "--steps", *map(str, size.steps)),
        *("--messages", str(size.messages), "--batch", str(size.batch)),
        *("--training", *size.trainings),
    )


def own(name: str, *options: str) -> Part:
    """A part that is a module of this package."""
    return Part(name, f"{__package__}.{name}", [*options])


def skill(out: Path, name: str, role: str, source: str, *, steps: int, asked: bool) -> Part:
    """The tuning of a role's agent on its own part, of a planner that knows the question or not."""
    part = own(
        *("skills", "--role", role, "--model", source, "--out", str(out / "skills" / name)),
        *("--steps", str(steps), "--evidence", f"asked={str(asked).lower()}"),
        f"validation={SKILL_ITEMS}",
    )
    return part._replace(name=f"skill of {name}")


def tuned(out: Path, name: str) -> str:
    """The folder of an agent that has a skill."""
    return str(out / "skills" / name / MODEL)


def alignment(folder: Path, seed: int, team: Sequence[str]) -> Part:
    """The run that aligns the links of a seed."""
    fields = (f"name={seed_name(seed)}", f"seed={seed}", f"output_dir={folder}")
    options = ["--config", CONFIG, *team]
    options += [part for field in fields for part in ("--set", field)]
    return Part(f"alignment, seed {seed}", "experiments.run", options)


def aligned(folder: Path, seed: int) -> Path:
    """The links that it makes."""
    return RunFiles(folder / seed_name(seed)).aligned_links


def seed_name(seed: int) -> str:
    """The name of its run."""
    return f"seed-{seed}"


def check_page(args: argparse.Namespace) -> None:
    """Ends with an error if the page has another size, before hours of other parts."""
    path, wanted = args.out / "curve" / REPORT, SIZES[args.size].messages
    report = read_report(path)
    if report and report["settings"]["messages"] != wanted:
        parser().error(
            f"--size {args.size} asks about {wanted} messages, {path} has "
            f"{report['settings']['messages']}; move its folder away, or use another --out"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs part by part; returns the exit code of the first that fails, or 0."""
    args = parser().parse_args(arguments)
    check_page(args)
    seconds: dict[str, float] = {}
    code = 0
    for part in parts(args):
        print(f"\n== python -m {part.module} {shlex.join(part.options)}", flush=True)
        if args.dry_run:
            continue
        started = time.perf_counter()
        command = [sys.executable, "-m", part.module, *part.options]
        code = subprocess.run(command, check=False).returncode
        seconds[part.name] = time.perf_counter() - started
        if code:
            break
    if seconds:
        lines = tuple((name, f"{of:.0f}") for name, of in seconds.items())
        print(f"\n{Table('Seconds by part', ('part', 's'), lines).to_markdown()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
