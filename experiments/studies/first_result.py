"""The first result: the quickstart over several seeds, pooled into one report.

    python -m experiments.studies.first_result --seeds 0 1 2 --out docs/first-result

Every seed is a run of its own (`runs/first-result-SEED`), finished ones are reused; the seed draws
the links' start and the order of the batches. Agents, questions and settings are the same; a
fourth round, which no training has seen, is evaluated too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from experiments.run import main as run
from rmas_jax.reporting.report import write_report

ROUNDS = [1, 2, 3, 4]  # the links are trained on three


def merge(runs: list[Path], into: Path) -> None:
    """Puts the rows of several runs into one folder; curves and gradients are the first run's."""
    into.mkdir(parents=True, exist_ok=True)
    results = [json.loads((folder / "results.json").read_text()) for folder in runs]
    (into / "results.json").write_text(json.dumps([row for rows in results for row in rows]))
    (into / "items.jsonl").write_text("".join((run / "items.jsonl").read_text() for run in runs))
    for name in ("metrics.jsonl", "gradients.json", "config.yaml", "environment.json"):
        shutil.copy(runs[0] / name, into / name)
    seconds = [json.loads((folder / "timings.json").read_text()) for folder in runs]
    mean = {stage: sum(times[stage] for times in seconds) / len(seconds) for stage in seconds[0]}
    (into / "timings.json").write_text(json.dumps(mean))


def main() -> int:
    """Runs the seeds, pools them and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="experiments/configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("docs/first-result"))
    args = parser.parse_args()
    folders = []
    for seed in args.seeds:
        name = f"first-result-{seed}"
        changes = [f"name={name}", f"seed={seed}", "output_dir=runs", f"evaluation.rounds={ROUNDS}"]
        code = run(["--config", args.config, *(x for c in changes for x in ("--set", c))])
        if code:
            return code
        folders.append(Path("runs") / name)
    pooled = Path("runs") / "first-result"
    merge(folders, pooled)
    write_report(pooled)
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(pooled / "report.md", args.out / "README.md")
    shutil.copy(pooled / "results.json", args.out / "results.json")
    shutil.copytree(pooled / "figures", args.out / "figures", dirs_exist_ok=True)
    print(f"report: {args.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
