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
from rmas_jax.host.storage import is_remote
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
        study = args.out.resolve().name
        configs = configurations(args.config, args.set, study, args.seeds)
        folder = Path(configs[0].output_dir)
        if (own := RunFiles(folder / study)).identity.exists():
            raise ConfigError(f"--out must have another name, as {own.root} is the folder of a run")
        if args.report_only:
            runs = [read_run(folder / config.name) for config in configs]
        else:
            runs = [one.measured for one in run_all(configs)]
        check_alike(runs)
        write(pool(runs, folder / study), args.out)

    return exit_code(work)


def run_name(study: str, seed: int) -> str:
    """The name of a study's run with one seed."""
    return f"{study}-{seed}"


def configurations(
    source: str, changes: Sequence[str], study: str, seeds: Sequence[int]
) -> list[RunConfig]:
    """The configuration with each seed.

    Raises:
      ConfigError: it is not usable, a seed comes twice, or runs are not on this machine.
    """
    if len({*seeds}) != len(seeds):
        raise ConfigError(f"--seeds must differ, got {', '.join(map(str, seeds))}")
    found = [
        load_config(source, [*changes, f"name={json.dumps(run_name(study, seed))}", f"seed={seed}"])
        for seed in seeds
    ]
    if is_remote(found[0].output_dir):
        raise ConfigError(f"output_dir must be a local folder, got {found[0].output_dir}")
    return found


def run_all(configs: Sequence[RunConfig]) -> list[FinishedRun]:
    """Runs configurations; finished runs are reused."""
    finished = []
    for config in configs:
        finished.append(run(config))
        print_results(finished[-1])
    return finished


def check_alike(runs: Sequence[Run]) -> None:
    """Checks that runs have measured the same, so that none is pooled half done.

    Raises:
      ConfigError: names a run and what it lacks.
    """
    cells = [
        {(row["benchmark"], row["split"], row["method"], row["rounds"]) for row in of.results}
        for of in runs
    ]
    wanted = set.union(*cells)
    if not wanted:
        raise ConfigError(f"{runs[0].directory}: must be a finished run, got one without results")
    for of, there in zip(runs, cells, strict=True):
        if lacking := sorted(wanted - there, key=str):
            raise ConfigError(
                f"{of.directory}: must be finished, and have measured what the other seeds have, "
                f"but lacks {len(lacking)} of {len(wanted)} results, such as {lacking[0]}"
            )


def pool(runs: Sequence[Run], directory: Path) -> Run:
    """One run with the rows of several; curves and gradients are the first run's."""
    common = set.intersection(*({*of_run.timings} for of_run in runs)) - {report.STEP}
    steps = [step for step in runs[0].timings if step in common]
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
