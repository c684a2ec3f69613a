"""Released systems on slices of TPUs, by compiled programs: nothing runs.

    python -m experiments.studies.scaling --out docs/scaling --cache ~/.cache/rmas_jax/plans

Weak scaling: one item a chip, and two for the goals of the partition. Strong scaling: 256 items,
whatever the slice, on chips whose memory has room for several items. The mesh is the default of
`rmas plan`: weights are split over 16 chips (`fsdp`; further ones hold copies) and meet activations
by the default policies. Systems whose layers fit whole (`WHOLE`) gather them once a step of
training, and once for all rounds of reading, and store their rollouts, of at most four items a
chip, instead of recomputing them. Decoders have the published sizes
(`experiments/configs/published`); widths are those that `rmas plan` assumes.

A point takes one to three minutes of a processor. Of v5e all of 16, 64 and 256 chips are there with
one item each; other chips leave 64 out, where each chip does what it does in slices of 16 and 256.

The study resumes: points that `results.json` has are not planned again, and the cache keeps what
the compiler said. `--points` plans at most so many, in the order of `SLICES`; the page says what is
missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.scaling_page import page, write_figures
from rmas_jax.cli.command import exit_code_of
from rmas_jax.cli.run import log_to_stderr
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.planning.chips import Slice, parse_slice
from rmas_jax.planning.slices import slice_devices
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.plan import mesh_sizes, plan_run
from rmas_jax.runs.plan_inputs import Widths
from rmas_jax.sharding import make_mesh

CONFIGS = Path("experiments/configs")
SYSTEMS = {  # configuration -> role -> published decoder
    "sequential_light": {
        "planner": "Qwen3-1.7B",
        "critic": "Llama-3.2-1B",
        "solver": "Qwen2.5-Math-1.5B",
    },
    "sequential_scaled": {
        "planner": "gemma-3-4b-it",
        "critic": "Llama-3.2-3B",
        "solver": "Qwen3.5-4B",
    },
    "mixture": {
        "math": "DeepSeek-R1-Distill-Qwen-1.5B",
        "code": "Qwen2.5-Coder-3B",
        "science": "BioMistral-7B",
        "summarizer": "Qwen3.5-2B",
    },
    "distillation": {"expert": "Qwen3.5-9B", "learner": "Qwen3.5-4B"},
    "deliberation": {"reflector": "Qwen3.5-4B", "toolcaller": "Qwen3.5-4B"},
}
# Chip -> systems whose layers fit whole on it, beside stored rollouts of few items.
WHOLE = {"v5e": ("sequential_light",), "v6e": ("sequential_light",), "v5p": tuple(SYSTEMS)}
SIZES = {  # chip -> slices, by the number of their chips
    "v5e": {4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"},
    "v6e": {16: "4x4", 256: "16x16"},
    "v5p": {16: "2x2x4", 64: "4x4x4", 256: "4x8x8"},
}
WEAK, STRONG = "weak", "strong"
SLICES = (  # scaling, chip and chips: 256 chips with 256 items belong to both kinds of scaling
    (WEAK, "v5e", 16),
    (WEAK, "v5e", 64),
    (WEAK, "v5e", 256),
    (WEAK, "v6e", 16),
    (WEAK, "v5p", 16),
    (WEAK, "v6e", 256),
    (STRONG, "v5p", 64),
    (WEAK, "v5p", 256),
    (WEAK, "v5e", 4),
    (STRONG, "v5p", 16),
)
FEW = 4  # items a chip
WORK = ("teacher_forced", "on_policy", "answers")  # a step of training, or answers
STRONG_ITEMS = 256


@dataclasses.dataclass(frozen=True)
class Point:
    """A program, or those of answers, on a slice."""

    system: str
    work: str  # one of WORK
    chip: str
    chips: int
    items: int

    @property
    def slice(self) -> Slice:
        """The slice."""
        return parse_slice(f"{self.chip}:{SIZES[self.chip][self.chips]}")

    def config(self) -> RunConfig:
        """The configuration of a run that does this work alone."""
        path = CONFIGS / "released" / f"{self.system}.yaml"
        overrides = [
            f"system.agents.{role}={CONFIGS / 'published' / name}"
            for role, name in SYSTEMS[self.system].items()
        ]
        # One method alone: prefixes that several share would be programs of their own.
        overrides += [f"evaluation.batch_size={self.items}", "runtime.shared_gib=0"]
        is_whole = self.system in WHOLE[self.chip]
        if is_whole:
            overrides.append("runtime.policies={training: replicate, reading: replicate}")
        config = load_config(path, overrides)
        if self.work == "answers":
            return config
        recomputes = not is_whole or self.items > FEW * self.chips
        phase = (
            f"{{name: {self.work}, latents: {self.work}, rounds: {config.system.rounds}, "
            f"steps: 1000, batch_size: {self.items}, learning_rate: 1e-4, "
            f"recompute_thoughts: {str(recomputes).lower()}}}"
        )
        return load_config(path, [*overrides, f"outer.phases=[{phase}]"])


# Two items a chip, where a weight meets enough positions for the goals of the partition.
PAIRS = tuple(
    Point("sequential_light", "teacher_forced", "v5e", chips, 2 * chips) for chips in (16, 256)
)


def points(args: argparse.Namespace) -> Iterator[Point]:
    """Yields the points of the study that the options name: `PAIRS`, then those of `SLICES`."""
    every = [(WEAK, pair) for pair in PAIRS]
    for scaling, chip, chips in SLICES:
        items = chips if scaling == WEAK else STRONG_ITEMS
        for system, work in itertools.product(SYSTEMS, WORK):
            every.append((scaling, Point(system, work, chip, chips, items)))
    for scaling, point in every:
        is_slice = point.chip in args.slices and point.chips in args.chips
        is_program = point.system in args.systems and point.work in args.work
        if scaling in args.scaling and is_slice and is_program:
            yield point


def plan(point: Point, cache: Path | None) -> dict[str, Any]:
    """Compiles the programs of a point; a row of the results."""
    wanted, config = point.slice, point.config()
    devices = slice_devices(wanted)
    found = plan_run(
        config,
        mesh=make_mesh(*mesh_sizes(config, wanted), devices=devices),
        wanted=wanted,
        widths=Widths(),
        only_throughput=True,
        cache=cache,
    )
    made = found.as_json()
    return dataclasses.asdict(point) | {"code": commit()} | cost(made["programs"], wanted) | made


def commit() -> str | None:
    """The commit of the code, short; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def cost(programs: Sequence[Mapping[str, Any]], wanted: Slice) -> dict[str, Any]:
    """Seconds of all programs of a point, and dollars for 1,000 items; None if one does not fit."""
    memory = max(program["total_memory"] for program in programs)
    seconds = dollars = None
    if memory <= wanted.chip.memory and all("seconds" in program for program in programs):
        seconds = math.fsum(program["seconds"] for program in programs)
        if wanted.chip.price is not None:
            each = seconds / programs[0]["items"] * wanted.chips
            dollars = 1000 * each / 3600 * wanted.chip.price
    return {"memory": memory, "seconds": seconds, "dollars_per_1000": dollars}


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans the points that are missing, and writes the page; returns an exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the page"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="see `rmas plan --cache`")
    for option, choices, what in (
        ("systems", tuple(SYSTEMS), "released configurations"),
        ("slices", tuple(SIZES), "chips"),
        ("work", WORK, "training steps, or answers"),
        ("scaling", (WEAK, STRONG), "one item a chip, or 256 items"),
    ):
        parser.add_argument(
            f"--{option}",
            nargs="+",
            default=choices,
            choices=choices,
            metavar="NAME",
            help=f"{what} (default: {' '.join(choices)})",
        )
    sizes = tuple(dict.fromkeys(chips for _, _, chips in SLICES))
    parser.add_argument(
        "--chips", nargs="+", type=int, default=sizes, choices=sizes, metavar="N", help="of a slice"
    )
    parser.add_argument("--points", type=int, metavar="N", help="plan at most so many more")
    args = parser.parse_args(arguments)
    log_to_stderr()
    return exit_code_of(lambda: study(args))


def study(args: argparse.Namespace) -> None:
    """Plans the missing points; writes results and page after each."""
    check_output_folder(args.out, option="--out", error=ConfigError)
    args.out.mkdir(parents=True, exist_ok=True)
    path = RunFiles(args.out).results
    rows = json.loads(path.read_text()) if path.exists() else []
    known = {_point(row) for row in rows}
    missing = [point for point in points(args) if point not in known]
    for number, point in enumerate(missing[: args.points]):
        log.info("%d of %d: %s", number + 1, len(missing), point)
        rows.append(plan(point, args.cache))
        write_atomic(path, json.dumps(rows, indent=1) + "\n")
    wanted = list(points(EVERYTHING))
    known = {_point(row) for row in rows}
    write_figures(rows, args.out)
    write_atomic(args.out / "README.md", page(rows, [p for p in wanted if p not in known]))


def _point(row: Mapping[str, Any]) -> Point:
    return Point(**{field.name: row[field.name] for field in dataclasses.fields(Point)})


EVERYTHING = argparse.Namespace(
    systems=tuple(SYSTEMS),
    scaling=(WEAK, STRONG),
    slices=tuple(SIZES),
    chips=tuple(chips for _, _, chips in SLICES),
    work=WORK,
)
log = logging.getLogger("rmas_jax.scaling")

if __name__ == "__main__":
    sys.exit(main())
