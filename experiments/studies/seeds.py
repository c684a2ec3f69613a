"""One configuration over several seeds, pooled into one report.

    python -m experiments.studies.seeds --out docs/first-result --set evaluation.rounds=[1,2,3,4]

Every seed is a run of its own (`runs/first-result-SEED`), and finished ones are reused. The seed
draws the links' start and the order of the batches; agents and questions are the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.cli.run import main as run
from rmas_jax.config import ConfigError
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, say_error
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting.report import write_report
from rmas_jax.reporting.run_directory import read_run


def merge(runs: list[Path], into: Path) -> None:
    """Puts the rows of several runs into one folder; curves and gradients are the first run's."""
    into.mkdir(parents=True, exist_ok=True)
    results = [json.loads((folder / "results.json").read_text()) for folder in runs]
    (into / "results.json").write_text(json.dumps([row for rows in results for row in rows]))
    (into / "items.jsonl").write_bytes(b"".join((run / "items.jsonl").read_bytes() for run in runs))
    for name in ("metrics.jsonl", "gradients.json", "config.yaml", "environment.json"):
        shutil.copy(runs[0] / name, into / name)
    seconds = [read_run(folder).timings for folder in runs]
    mean = {step: sum(times[step] for times in seconds) / len(seconds) for step in seconds[0]}
    (into / "timings.json").write_text(json.dumps(mean))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds, pools them and writes the report; the exit code is 2 for bad input."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the report")
    parser.add_argument("--config", default="quickstart", metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    args = parser.parse_args(arguments)
    try:
        check_output_folder(args.out, option="--out", error=ConfigError)
        return pool(args)
    except USER_ERRORS as error:
        say_error(error)
        return BAD_INPUT


def pool(args: argparse.Namespace) -> int:
    """Runs what is not run yet, then merges; returns the exit code of the first run that failed."""
    study, runs = args.out.name, Path("runs")
    folders = [runs / f"{study}-{seed}" for seed in args.seeds]
    for folder, seed in zip(folders, args.seeds, strict=True):
        changes = [*args.set, f"name={folder.name}", f"seed={seed}", f"output_dir={runs}"]
        code = run(["--config", args.config, *(x for c in changes for x in ("--set", c))])
        if code:
            return code
    merge(folders, runs / study)
    write_report(runs / study)
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(runs / study / "report.md", args.out / "README.md")
    shutil.copy(runs / study / "results.json", args.out / "results.json")
    shutil.copytree(runs / study / "figures", args.out / "figures", dirs_exist_ok=True)
    print(f"report: {args.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
