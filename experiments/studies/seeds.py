"""One configuration with several seeds, pooled into one report.

    python -m experiments.studies.seeds --out docs/comparison \\
        --config experiments/configs/comparison.yaml

Every seed is a separate run (`runs/comparison-SEED`); finished runs are reused. The seed
determines the links' start and the order of the batches; agents and questions are the same. With
`--report-only`, finished runs are read as they are, and the report alone is written again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.cli.run import exit_code, print_results
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.checksums import seal
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting import report
from rmas_jax.reporting.run_directory import Run, read_run
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.run import FinishedRun, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds, pools them and writes the report; returns the exit code of a run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the report"
    )
    parser.add_argument("--config", default="quickstart", metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="read the finished runs, and run nothing"
    )
    args = parser.parse_args(arguments)

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        study, config = args.out.name, load_config(args.config, args.set)
        folder = Path(config.output_dir)
        if args.report_only:
            runs = [read_run(folder / run_name(study, seed)) for seed in args.seeds]
        else:
            runs = [one.measured for one in run_seeds(config, study, args.seeds)]
        write(pool(runs, folder / study), args.out)

    return exit_code(work)


def run_name(study: str, seed: int) -> str:
    """The name of a study's run with one seed."""
    return f"{study}-{seed}"


def run_seeds(config: RunConfig, study: str, seeds: Sequence[int]) -> list[FinishedRun]:
    """Runs a configuration with each seed; finished runs are reused."""
    finished = []
    for seed in seeds:
        name = run_name(study, seed)
        finished.append(run(dataclasses.replace(config, name=name, seed=seed)))
        print_results(finished[-1])
    return finished


def pool(runs: Sequence[Run], directory: Path) -> Run:
    """One run with the rows of several; curves and gradients are the first run's."""
    steps = [step for step in runs[0].timings if step != report.STEP]
    return dataclasses.replace(
        runs[0],
        directory=directory,
        results=[row for of_run in runs for row in of_run.results],
        items=[item for of_run in runs for item in of_run.items],
        audits=[audit for of_run in runs for audit in of_run.audits],
        timings={step: sum(of_run.timings[step] for of_run in runs) / len(runs) for step in steps},
    )


def write(pooled: Run, out: Path) -> None:
    """Writes the report of pooled runs into their directory and into the study's."""
    pooled.directory.mkdir(parents=True, exist_ok=True)
    report.write(pooled)
    files = RunFiles(pooled.directory)
    out.mkdir(parents=True, exist_ok=True)
    rows = [seal(row) for row in pooled.results]
    write_atomic(RunFiles(out).results, json.dumps(rows, indent=1) + "\n")
    write_atomic(out / "README.md", files.markdown.read_bytes())
    shutil.copytree(files.figures, RunFiles(out).figures, dirs_exist_ok=True)
    print(f"report: {out / 'README.md'}")


if __name__ == "__main__":
    sys.exit(main())
