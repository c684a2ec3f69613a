"""The study of seeds: several runs as one report."""

import json

from made_runs import SPLITS, result_rows, write_run

from experiments.studies.seeds import pool, write
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.run import FinishedRun


def finished(directory, seed, seconds):
    """A run with the results of a seed, and a report from before."""
    files = RunFiles(write_run(directory, seeds=(seed,)))
    files.timings.write_text(json.dumps({"evaluation": seconds, "report": 1.0}))
    return FinishedRun(None, files, None, None, read_run(files.root), ())


def test_seeds_are_pooled_into_one_report(tmp_path, capsys):
    runs = [finished(tmp_path / str(seed), seed, seconds=10.0 * seed) for seed in (0, 1, 2)]
    pooled = pool(runs, tmp_path / "pooled")
    assert pooled.results == [row for seed in (0, 1, 2) for row in result_rows(seeds=(seed,))]
    assert len(pooled.items) == sum(len(run.measured.items) for run in runs)
    assert pooled.timings == {"evaluation": 10.0}

    out = tmp_path / "study"
    write(pooled, out)
    assert str(out / "README.md") in capsys.readouterr().out
    page = (out / "README.md").read_text()
    assert all(split in page for split in SPLITS) and "figures/accuracy.png" in page
    assert (out / "figures" / "accuracy.png").stat().st_size > 0
    rows = json.loads((out / "results.json").read_text())
    assert read_run(out).results == pooled.results and len(rows) == len(pooled.results)
    assert {file.name for file in out.iterdir()} == {"README.md", "results.json", "figures"}
