"""The study of seeds: several runs as one report."""

import json

from made_runs import SPLITS, result_rows, write_run

from experiments.studies.seeds import main, pool
from rmas_jax.reporting import report
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.run_files import AuditFiles, RunFiles


def finished(directory, seed, seconds):
    """A run with the results of a seed, and a report from before."""
    directory.parent.mkdir(exist_ok=True)
    files = RunFiles(write_run(directory, seeds=(seed,)))
    files.timings.write_text(json.dumps({"evaluation": seconds, "report": 1.0}))
    return read_run(files.root)


def test_seeds_are_pooled_into_one_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [finished(tmp_path / f"runs/study-{k}", k, seconds=10.0 * k) for k in (0, 1, 2)]
    pooled = pool(runs, tmp_path / "pooled")
    assert pooled.results == [row for seed in (0, 1, 2) for row in result_rows(seeds=(seed,))]
    assert len(pooled.items) == sum(len(run.items) for run in runs)
    assert pooled.timings == {"evaluation": 10.0}

    out = tmp_path / "study"
    assert main(["--out", "study", "--seeds", "0", "1", "2", "--report-only"]) == 0
    assert "study/README.md" in capsys.readouterr().out
    page = (out / "README.md").read_text()
    assert all(split in page for split in SPLITS) and "figures/accuracy.png" in page
    assert (out / "figures" / "accuracy.png").stat().st_size > 0
    rows = json.loads((out / "results.json").read_text())
    assert read_run(out).results == pooled.results and len(rows) == len(pooled.results)
    assert {file.name for file in out.iterdir()} == {"README.md", "results.json", "figures"}


def test_finished_audits_are_pooled(tmp_path, monkeypatch):
    for seed, name in enumerate((AuditFiles.markdown, AuditFiles.protocol, AuditFiles.markdown)):
        audit = RunFiles(tmp_path / f"runs/study-{seed}").audit
        audit.mkdir(parents=True)
        (audit / name).write_text("")
        finished(audit.parent, seed, seconds=1.0)
    folders = [tmp_path / f"runs/study-{seed}" for seed in range(3)]
    pooled = pool([*map(read_run, folders)], tmp_path / "pooled")
    assert pooled.audits == [folders[0] / "audit", folders[2] / "audit"]
    seen = []
    pooled.directory.mkdir()
    monkeypatch.setattr(report, "read_audit", lambda folder: folder)
    monkeypatch.setattr(report, "audit_parts", lambda records: seen.extend(records) or ["both"])
    report.write(pooled)
    assert seen == pooled.audits and "both" in RunFiles(tmp_path / "pooled").markdown.read_text()


def test_runs_that_are_not_there_give_no_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs/study-0", 0, seconds=1.0)
    assert main(["--out", "study", "--seeds", "0", "1", "--report-only"]) == 2
    assert "runs/study-1" in capsys.readouterr().err and not (tmp_path / "study").exists()
