"""What to train with: latents, feedback, start and supervision of the outer loop, one at a time.

    python -m experiments.studies.training_choices --out docs/training-choices
    python -m experiments.studies.training_choices --out docs/random-start \\
        --variants aligned random-long --base aligned

Every variant changes one choice of `experiments/configs/training_choices.yaml`, or (upstream) all
of them to what upstream does; the second command gives a random start more to go on. A seed's
variants start from the same links, which its first run has aligned. Each is a run of its own
(`runs/training-choices/VARIANT-SEED`); finished ones are reused. What is chosen is chosen on the
validation split; test is reported beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmas_jax.cli.run import main as run
from rmas_jax.config import ConfigError
from rmas_jax.evaluation.metrics import paired_difference
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, say_error
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting.results import accuracy_interval

CONFIG = "experiments/configs/training_choices.yaml"
ALIGNED, BASE = "aligned", "base"
PHASE = "outer.phases.0."
TEACHER = {PHASE + "latents": "teacher_forced"}
RANDOM = {"system.outer_start": "torch_default"}
LAST_ROUND = {PHASE + "role_text_weight": 0.0}
# Variant -> what it is, and the fields that it changes; None: no outer loop.
VARIANTS: dict[str, tuple[str, Mapping[str, Any] | None]] = {
    ALIGNED: ("no outer loop: links as aligned on texts", None),
    BASE: ("on-policy latents, aligned start, every role's text in every round", {}),
    "teacher-draft": (
        "latents teacher-forced; feedback from the round's own draft (no leak)",
        TEACHER | {PHASE + "feedback": "draft"},
    ),
    "teacher-gold": (
        "latents teacher-forced; feedback from the gold answer (a leak)",
        TEACHER | {PHASE + "feedback": "gold"},
    ),
    "teacher-rollout": (
        "latents teacher-forced; feedback from a rollout (no leak)",
        TEACHER | {PHASE + "feedback": "rollout"},
    ),
    "last-round": ("supervised by the last round's answer alone", LAST_ROUND),
    "all-rounds": (
        "supervised by the answerer's text in every round",
        LAST_ROUND | {PHASE + "round_weights": "[1.0,1.0,1.0]"},
    ),
    "random-start": ("outer links start at random (torch's defaults)", RANDOM),
    "upstream": (
        "random start, teacher-forced latents, gold feedback, last round",
        RANDOM | TEACHER | LAST_ROUND | {PHASE + "feedback": "gold"},
    ),
    "random-long": (
        "random start, six times the steps, ten times the learning rate",
        RANDOM | {PHASE + "steps": 600, PHASE + "learning_rate": 1e-3},
    ),
}
CHOICES = tuple(name for name in VARIANTS if name != "random-long")


def train_variant(name: str, seed: int, runs: Path, extra: Sequence[str]) -> int:
    """Runs a variant, unless it is done; returns the exit code."""
    changes = VARIANTS[name][1]
    fields: dict[str, Any] = {"name": f"{name}-{seed}", "seed": seed, "output_dir": str(runs)}
    if changes is None:
        fields["outer.phases"] = "[]"
    else:
        fields |= changes
        if "system.outer_start" not in changes:
            fields["system.links"] = str(runs / f"{ALIGNED}-{seed}/links/aligned.safetensors")
            fields["inner.steps"] = 0
    overrides = [f"{key}={value}" for key, value in fields.items()] + list(extra)
    return run(["--config", CONFIG, *(x for o in overrides for x in ("--set", o))])


def correct_items(folder: Path) -> dict[str, dict[str, bool]]:
    """Split -> id -> whether the answer was right."""
    found: dict[str, dict[str, bool]] = {}
    for line in (folder / "items.jsonl").read_bytes().split(b"\n")[:-1]:
        item = json.loads(line)
        found.setdefault(item["split"], {})[item["id"]] = item["correct"]
    return found


def summarise(
    runs: Path, variants: Sequence[str], base_name: str, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A row per variant and split, all seeds pooled; differences are to the base, item by item."""
    correct = {
        name: [correct_items(runs / f"{name}-{seed}") for seed in seeds] for name in variants
    }
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
                    f"| {row['variant']} | {VARIANTS[row['variant']][0]} "
                    f"| {100 * row['accuracy']:.1f} [{low:.1f}, {high:.1f}] | {by_seed} "
                    f"| {100 * row['difference']:+.1f} [{least:+.1f}, {most:+.1f}] |"
                )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all variants, pools them and writes the tables; the exit code is 2 for bad input."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the tables")
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
        help=f"what is compared, in this order (default: {' '.join(CHOICES)}); the first is "
        f"{ALIGNED}, whose links the others start from",
    )
    parser.add_argument("--base", default=BASE, metavar="NAME", help="what others are held against")
    args = parser.parse_args(arguments)
    if args.variants[0] != ALIGNED or args.base not in args.variants:
        parser.error(f"--variants starts with {ALIGNED} and has --base ({args.base})")
    try:
        check_output_folder(args.out, option="--out", error=ConfigError)
        return pool(args)
    except USER_ERRORS as error:
        say_error(error)
        return BAD_INPUT


def pool(args: argparse.Namespace) -> int:
    """Runs what is not run yet, then writes; returns the exit code of the first run that failed."""
    runs = Path("runs") / args.out.name
    for seed in args.seeds:
        for name in args.variants:
            if code := train_variant(name, seed, runs, args.set):
                return code
    rows = summarise(runs, args.variants, args.base, args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    page = markdown(rows, args.base, args.seeds)
    (args.out / "tables.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
