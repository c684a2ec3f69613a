"""The studies of real agents, with one command each: models, skills, links, report.

    python -m experiments.real_agents.study --out runs/real_agents                # the curve
    python -m experiments.real_agents.study --out runs/real_agents --about hops   # rounds and hops

    OUT/models     downloaded models (--planner, --solver: a GGUF file, folder or hub id instead)
    OUT/skills     planner and solver, each tuned on its own part alone

curve:
    OUT/alignment  a run for each seed of the links; agents read their texts once for all of them
    OUT/curve      the page: accuracy against M, trained links, controls, bounds, the skills

hops:
    OUT/runs       a run for each seed of the links, and one of the solver with all facts
    OUT/hops       the report of all seeds: accuracy by rounds and hops, controls, costs
    OUT/crossing   which link loses a word

Every part is a process of its own, whose command is shown; at the end stands what each took. The
same command goes on where an interrupted one stopped, and finished parts are reused. Another --size
asks about other messages, or trains other links: the curve, or runs, of the earlier one must be
moved away first.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.real_agents.crossing import CONFIG as TEAM
from experiments.real_agents.curve import REPORT
from experiments.real_agents.fetch import MODELS
from experiments.real_agents.options import CONFIG, read_report
from experiments.real_agents.skills import MODEL
from experiments.studies.seeds import run_name
from rmas_jax.config import ConfigError
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
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
    of_hops: tuple[str, ...] = ()  # changed fields of the team of two families; none: all of it


STEPS = (1, 2, 4, 8, 11)
FEW = (  # texts of fewer questions, links that are not trained on answers, controls alone
    "inner.items=500",
    "outer.phases=[]",
    "tuning=[]",
    "evaluation.methods=[aligned_links,recursive_text,no_latents,shuffled_latents,single_agents]",
    "evaluation.audit=null",
)
SIZES = {
    "small": Size(
        "one seed, two M; of hops, aligned links", (4, 8), 1, 64, ("words",), of_hops=FEW
    ),
    "medium": Size("two seeds, five M", STEPS, 2, 128, ("words",), bound=STEPS),
    "gpu": Size("three seeds, two M, for one GPU of 80 GB", (4, 8), 3, 256, ("words",), batch=32),
    "full": Size(
        "three seeds, five M, four trainings",
        STEPS,
        3,
        256,
        ("words", "states", "answers", "states_adapter"),
        bound=STEPS,
        fitted=32,
        is_probed=True,
    ),
}
CEILING = "experiments/configs/real_agents/ceiling.yaml"
ROLES = ("planner", "solver")
AGENTS = {  # unless --planner and --solver name others
    "curve": {"planner": "smollm2", "solver": "smollm2"},
    "hops": {"planner": "gemma3", "solver": "smollm2"},
}
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
    out.add_argument(
        "--about",
        choices=AGENTS,
        default="curve",
        help="what M thoughts hold, or what rounds and hops do (%(default)s)",
    )
    sizes = "; ".join(f"{name}: {size.about}" for name, size in SIZES.items())
    out.add_argument("--size", choices=SIZES, default="small", help=f"{sizes} (%(default)s)")
    for role in ROLES:
        out.add_argument(
            f"--{role}",
            metavar="MODEL",
            help=f"{' or '.join(MODELS)}, which are downloaded, a GGUF file, a folder or a hub id ("
            + ", ".join(f"{about}: {of[role]}" for about, of in AGENTS.items())
            + ")",
        )
    out.add_argument("--dry-run", action="store_true", help="show the commands alone")
    return out


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """All parts, in order."""
    out = args.out
    models = {role: getattr(args, role) or AGENTS[args.about][role] for role in ROLES}
    if known := [name for name in MODELS if name in models.values()]:
        yield own("fetch", "--out", str(out / "models"), "--models", *known)
    sources = {
        role: str(out / "models" / model / MODELS[model].file) if model in MODELS else model
        for role, model in models.items()
    }
    yield from {"curve": of_curve, "hops": of_hops}[args.about](out, SIZES[args.size], sources)


def of_curve(out: Path, size: Size, sources: Mapping[str, str]) -> Iterator[Part]:
    """A planner that does not know the question: accuracy against M."""
    # A solver that has learnt to look up one place learns to look up four; directly it guesses.
    yield skill(out, "planner", "planner", sources["planner"], steps=20, evidence="asked=false")
    yield skill(out, "solver-asked", "solver", sources["solver"], steps=60, evidence="asked=true")
    first = tuned(out, "solver-asked")
    yield skill(out, "solver", "solver", first, steps=60, evidence="asked=false")
    team = team_of(out, planner="planner", solver="solver")
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


def of_hops(out: Path, size: Size, sources: Mapping[str, str]) -> Iterator[Part]:
    """Both know the question: accuracy by rounds and hops."""
    is_gemma = Path(sources["planner"]).name == MODELS["gemma3"].file
    steps = {"planner": 40 if is_gemma else 100, "solver": 60}  # to do its part above 95 %
    for role in ROLES:
        source = sources[role]
        yield skill(out, of_four(role), role, source, steps=steps[role], evidence="hops=4")
    team = team_of(out, **{role: of_four(role) for role in ROLES})
    runs = out / "runs"
    changed = fields(f"output_dir={quoted(runs)}", *size.of_hops)
    seeds = [*map(str, range(size.seeds))]
    yield Part(
        "hops",
        "experiments.studies.seeds",
        ["--out", str(out / "hops"), "--config", TEAM, *team, *changed, "--seeds", *seeds],
    )
    links = [
        str(RunFiles(runs / run_name("hops", seed)).aligned_links) for seed in range(size.seeds)
    ]
    yield own("crossing", "--out", str(out / "crossing"), *team, *changed, "--links", *links)
    if not size.of_hops:
        alone = team_of(out, solver=of_four("solver"))
        changed = fields(f"output_dir={quoted(runs)}")
        yield Part("ceiling", "experiments.run", ["--config", CEILING, *alone, *changed])


def own(name: str, *options: str) -> Part:
    """A part that is a module of this package."""
    return Part(name, f"{__package__}.{name}", [*options])


def skill(out: Path, name: str, role: str, source: str, *, steps: int, evidence: str) -> Part:
    """The tuning of a role's agent on its own part, with a dial of the evidence."""
    part = own(
        *("skills", "--role", role, "--model", source, "--out", str(out / "skills" / name)),
        *("--steps", str(steps), "--evidence", evidence, f"validation={SKILL_ITEMS}"),
    )
    return part._replace(name=f"skill of {name}")


def of_four(role: str) -> str:
    """The name of a role's skill in questions of four hops."""
    return f"{role}-of-four-hops"


def team_of(out: Path, **names: str) -> list[str]:
    """Options of a team whose agents have these skills, by role."""
    agents = {role: tuned(out, name) for role, name in names.items()}
    return fields(*(f"system.agents.{role}={quoted(path)}" for role, path in agents.items()))


def fields(*changed: str) -> list[str]:
    """Options that change fields of a configuration."""
    return [part for field in changed for part in ("--set", field)]


def quoted(path: Path | str) -> str:
    """A path as the value of a field, whatever characters it has."""
    return json.dumps(str(path))


def tuned(out: Path, name: str) -> str:
    """The folder of an agent that has a skill."""
    return str(out / "skills" / name / MODEL)


def alignment(folder: Path, seed: int, team: Sequence[str]) -> Part:
    """The run that aligns the links of a seed."""
    named = fields(f"name={seed_name(seed)}", f"seed={seed}", f"output_dir={quoted(folder)}")
    options = ["--config", CONFIG, *team, *named]
    return Part(f"alignment, seed {seed}", "experiments.run", options)


def aligned(folder: Path, seed: int) -> Path:
    """The links that it makes."""
    return RunFiles(folder / seed_name(seed)).aligned_links


def seed_name(seed: int) -> str:
    """The name of its run."""
    return f"seed-{seed}"


def check(args: argparse.Namespace) -> None:
    """Checks what can be checked before hours of other parts.

    Raises:
      ConfigError: --out is no folder, a model is not there, or the curve has another size.
    """
    check_output_folder(args.out, option="--out", error=ConfigError)
    for role in ROLES:
        model = getattr(args, role)
        if model == "" or (model and Path(model).is_absolute() and not Path(model).exists()):
            raise ConfigError(
                f"--{role} must be {' or '.join(MODELS)}, a GGUF file, a folder or a hub id, got "
                f"{model!r}"
            )
    if args.about != "curve":
        return
    path, size = args.out / "curve" / REPORT, SIZES[args.size]
    wanted = {"messages": size.messages, "batch": size.batch}
    if report := read_report(path):
        found = {name: report["settings"].get(name) for name in wanted}
        if found != wanted:
            raise ConfigError(
                f"--size {args.size} has {wanted}, {path} {found}; move its folder away, or use "
                "another --out"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs part by part; returns the exit code of the first that fails, or 0."""
    args = parser().parse_args(arguments)
    try:
        check(args)
    except ConfigError as error:
        parser().error(str(error))
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
