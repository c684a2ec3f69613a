"""Choices of the outer loop: latents, feedback, start and supervision, one at a time.

    python -m experiments.studies.training_choices --out docs/training-choices
    python -m experiments.studies.training_choices --out docs/random-start \\
        --variants aligned random-long --base aligned

Every variant changes one choice of `experiments/configs/training_choices.yaml`; the variant
`upstream` changes all of them to upstream's. The second command gives a random start more steps and
a higher learning rate. A seed's variants start from the same links, which its first run aligns.
Each variant and seed is a separate run (`runs/training-choices/VARIANT-SEED`); finished runs are
reused. Choices are made on the validation split; test is reported beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmas_jax.cli.run import exit_code, print_results
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.evaluation.metrics import paired_difference
from rmas_jax.evaluation.rows import ItemRow
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting.results import accuracy_interval
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.run import run

CONFIG = "experiments/configs/training_choices.yaml"
ALIGNED, BASE = "aligned", "base"
TEACHER = {"latents": "teacher_forced"}
LAST_ROUND = {"role_text_weight": 0.0}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One choice, or several of them."""

    what: str  # in words
    phase: Mapping[str, Any] | None  # fields of the outer loop's phase; None: no outer loop
    is_random: bool = False  # outer links start at random, not from those of ALIGNED


VARIANTS = {
    ALIGNED: Variant("no outer loop: links as aligned on texts", None),
    BASE: Variant("on-policy latents, aligned start, every role's text in every round", {}),
    "teacher-draft": Variant(
        "latents teacher-forced; feedback from the round's own draft (no leak)",
        TEACHER | {"feedback": "draft"},
    ),
    "teacher-gold": Variant(
        "latents teacher-forced; feedback from the gold answer (a leak)",
        TEACHER | {"feedback": "gold"},
    ),
    "teacher-rollout": Variant(
        "latents teacher-forced; feedback from a rollout (no leak)",
        TEACHER | {"feedback": "rollout"},
    ),
    "last-round": Variant("supervised by the last round's answer alone", LAST_ROUND),
    "all-rounds": Variant(
        "supervised by the answerer's text in every round",
        LAST_ROUND | {"round_weights": [1.0, 1.0, 1.0]},
    ),
    "random-start": Variant("outer links start at random (torch's defaults)", {}, is_random=True),
    "upstream": Variant(
        "random start, teacher-forced latents, gold feedback, last round",
        TEACHER | LAST_ROUND | {"feedback": "gold"},
        is_random=True,
    ),
    "random-long": Variant(
        "random start, six times the steps, ten times the learning rate",
        {"steps": 600, "learning_rate": 1e-3},
        is_random=True,
    ),
}
CHOICES = tuple(name for name in VARIANTS if name != "random-long")


def variant_config(config: RunConfig, name: str, seed: int) -> RunConfig:
    """The run of a variant: at most one phase, and the links that it starts from, if any."""
    variant, replace = VARIANTS[name], dataclasses.replace
    own = replace(config, name=f"{name}-{seed}", seed=seed)
    (phase,) = config.outer.phases
    phases = [] if variant.phase is None else [replace(phase, **variant.phase)]
    own = replace(own, outer=replace(config.outer, phases=phases))
    if variant.is_random:
        return replace(own, system=replace(config.system, outer_start="torch_default"))
    if variant.phase is None:
        return own
    aligned = RunFiles(Path(config.output_dir) / f"{ALIGNED}-{seed}").aligned_links
    return replace(
        own,
        system=replace(config.system, links=os.path.abspath(aligned)),
        inner=replace(config.inner, steps=0),
    )


def correct_items(items: Iterable[ItemRow]) -> dict[str, dict[str | int, bool]]:
    """Split -> id -> whether the answer is correct."""
    found: dict[str, dict[str | int, bool]] = {}
    for item in items:
        found.setdefault(item["split"], {})[item["id"]] = item["correct"]
    return found


def summarise(
    correct: Mapping[str, Sequence[Mapping[str, Mapping[Any, bool]]]],
    base_name: str,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """A row per variant and split, pooled over seeds; differences to the base are item by item.

    Args:
      correct: variant -> `correct_items` of each seed.
      base_name: the variant to compare with.
      seeds: of the runs.
    """
    rows = []
    for name, of_seeds in correct.items():
        for split in of_seeds[0]:
            base, own = (
                {
                    (seed, item): is_right
                    for seed, items in zip(seeds, of, strict=True)
                    for item, is_right in items[split].items()
                }
                for of in (correct[base_name], of_seeds)
            )
            interval, questions = accuracy_interval(own), [item for _, item in own]
            paired = paired_difference([*own.values()], [base[key] for key in own], items=questions)
            rows.append(
                {
                    "variant": name,
                    "split": split,
                    "n": len(own),
                    "items": paired.items,
                    "accuracy": float(np.mean([*own.values()])),
                    "interval": tuple(interval),
                    "by_seed": [float(np.mean([*items[split].values()])) for items in of_seeds],
                    "difference": paired.difference,
                    "difference_interval": tuple(paired.interval),
                }
            )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], base: str, seeds: Sequence[int]) -> str:
    """The table of every split."""
    lines = [
        "# What to train with",
        "",
        f"Three embedded agents, three rounds, seeds {', '.join(map(str, seeds))} "
        f"(`{CONFIG}`, `experiments/studies/training_choices.py`). Accuracy at three rounds in %, "
        "95 % intervals over questions, each with the answers of all seeds; beside them the seeds; "
        f"the difference to `{base}` is over the same questions.",
    ]
    for split in dict.fromkeys(row["split"] for row in rows):
        lines += ["", f"## {split}", "", "| variant | | accuracy | seeds | to base |"]
        lines += ["|---|---|---|---|---|"]
        for row in rows:
            if row["split"] == split:
                low, high = (100 * x for x in row["interval"])
                least, most = (100 * x for x in row["difference_interval"])
                by_seed = ", ".join(f"{100 * x:.1f}" for x in row["by_seed"])
                lines.append(
                    f"| {row['variant']} | {VARIANTS[row['variant']].what} "
                    f"| {100 * row['accuracy']:.1f} [{low:.1f}, {high:.1f}] | {by_seed} "
                    f"| {100 * row['difference']:+.1f} [{least:+.1f}, {most:+.1f}] |"
                )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all variants, pools them and writes the tables; returns the exit code of a run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the tables"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        default=CHOICES,
        choices=VARIANTS,
        metavar="NAME",
        help=f"variants to compare, in this order (default: {' '.join(CHOICES)}); the first must "
        f"be {ALIGNED}, because the others start from its links",
    )
    parser.add_argument("--base", default=BASE, metavar="NAME", help="variant to compare with")
    args = parser.parse_args(arguments)
    if args.variants[0] != ALIGNED or args.base not in args.variants:
        parser.error(
            f"--variants must start with {ALIGNED} and have --base ({args.base}), got "
            f"{' '.join(args.variants)}"
        )
    return exit_code(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """Runs all unfinished variants, then writes the tables."""
    check_output_folder(args.out, option="--out", error=ConfigError)
    config = load_config(CONFIG, [*args.set, f"output_dir=runs/{args.out.name}"])
    correct: dict[str, list[dict[str, dict[str | int, bool]]]] = {
        name: [] for name in args.variants
    }
    for seed in args.seeds:
        for name in args.variants:
            finished = run(variant_config(config, name, seed))
            print_results(finished)
            correct[name].append(correct_items(finished.measured.items))
    rows = summarise(correct, args.base, args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(RunFiles(args.out).results, json.dumps(rows, indent=2) + "\n")
    page = markdown(rows, args.base, args.seeds)
    write_atomic(args.out / "tables.md", page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
