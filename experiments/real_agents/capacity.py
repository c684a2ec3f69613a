"""How much M thoughts hold, against as many tokens of text: the capacity curve.

    python -m experiments.real_agents.capacity --out docs/real-agents/capacity --steps 1 2 4 8 11

A planner that does not know the question sends all of its facts; the solver is asked about one.
For every M and seed a run (`OUTPUT_DIR/capacity-M-SEED`) aligns links, trains them by the outer
loop, and measures the trained links, the aligned ones, text cut to M tokens, whole text and
controls. Finished runs are reused, so that further M, seeds or an interrupted study go on from
there. With `--report-only`, those that are there are read as they are. The page also has what lies
beside it, or beside the agents: the bound of `free_vectors`, what `probe` has found, what `trials`
came to, the skills of the agents.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.real_agents.capacity_page import FIGURE, Bound, Study, figure, page
from experiments.real_agents.skill_card import RECORD
from rmas_jax.cli.run import exit_code, print_results
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.reporting.audit import read_audit
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.run_directory import Run, read_run
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.run import run

CONFIG = "experiments/configs/real_agents/capacity.yaml"
# Beside the page, of modules of these names.
BOUND, PROBE, REPORT = "free_vectors.json", "probe.json", "trials.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all M and seeds and writes the page; returns the exit code of a run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the page")
    parser.add_argument("--config", default=CONFIG, metavar="FILE")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 11], metavar="M")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    parser.add_argument("--report-only", action="store_true", help="read the finished runs alone")
    args = parser.parse_args(arguments)

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        config = load_config(args.config, args.set)
        found: dict[int, list[Run]] = {}
        for count, seed in itertools.product(args.steps, args.seeds):
            of_run = measured(variant(config, count, seed), report_only=args.report_only)
            if of_run is not None:
                found.setdefault(count, []).append(of_run)
        write(found, args.out, config.system.agents)

    return exit_code(work)


def variant(config: RunConfig, count: int, seed: int) -> RunConfig:
    """The run of one M and seed."""
    name = f"{config.name}-{count}-{seed}"
    return dataclasses.replace(with_steps(config, count), name=name, seed=seed)


def with_steps(config: RunConfig, count: int) -> RunConfig:
    """The same with M latent steps."""
    system = dataclasses.replace(config.system, latent_steps=count)
    return dataclasses.replace(config, system=system)


def measured(config: RunConfig, *, report_only: bool) -> Run | None:
    """The content of a run's folder; runs what is not finished, or is None with `report_only`."""
    if report_only:
        folder = Path(config.output_dir) / config.name
        return read_run(folder) if RunFiles(folder).results.is_file() else None
    finished = run(config)
    print_results(finished)
    return finished.measured


def write(found: Mapping[int, Sequence[Run]], out: Path, agents: Mapping[str, str]) -> None:
    """Writes the rows of all M, the page and its figure.

    Args:
      found: by M, a run for each seed.
      out: folder of the page; its `BOUND`, `PROBE` and `REPORT`, if there, are in
        the page.
      agents: by role; a folder's `RECORD` says how the agent was tuned.
    """
    study = Study(
        pooled={
            count: Results(
                [row for of_run in runs for row in of_run.results],
                [item for of_run in runs for item in of_run.items],
            )
            for count, runs in found.items()
        },
        audits={
            count: [read_audit(RunFiles(of_run.directory).audit) for of_run in runs]
            for count, runs in found.items()
            if all(RunFiles(of_run.directory).audit.exists() for of_run in runs)
        },
        bound=read_bound(out / BOUND),
        probe=json.loads((out / PROBE).read_text())["rows"] if (out / PROBE).is_file() else (),
        trials=json.loads((out / REPORT).read_text()) if (out / REPORT).is_file() else {},
        skills={
            role: json.loads((Path(folder) / RECORD).read_text())
            for role, folder in agents.items()
            if (Path(folder) / RECORD).is_file()
        },
    )
    rows = {
        count: [row for of_run in runs for row in of_run.results] for count, runs in found.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    if study.counts:
        figure(study).savefig(out / FIGURE, metadata={"Software": None})
    write_atomic(RunFiles(out).results, json.dumps(rows, indent=1) + "\n")
    write_atomic(out / "README.md", page(study))
    print(f"page: {out / 'README.md'}")


def read_bound(path: Path) -> list[Bound]:
    """What `free_vectors` has measured; nothing if it has not run."""
    if not path.is_file():
        return []
    rows = json.loads(path.read_text())["rows"]
    return [Bound(row["latent_steps"], row["n"], row["accuracy"], row["interval"]) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
