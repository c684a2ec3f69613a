"""The study of seeds: several runs as one report."""

import json

import pytest
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "0", "0"], "--seeds must differ, got 0, 0"),
        (["--seeds", "-1"], "seed must be"),
        (["--seeds", str(2**32)], "seed must be"),
        (["--set", "output_dir=gs://bucket/runs"], "output_dir must be a local folder"),
        (["--set", "nosuch=1"], "nosuch"),
        (["--out", "no name?"], "name must"),
        (["--out", "plain"], "--out must have another name, as runs/plain is the folder of a run"),
    ],
)
def test_what_cannot_be_pooled_is_refused(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs/study-0", 0, seconds=1.0)
    own = RunFiles(tmp_path / "runs/plain")
    own.root.mkdir()
    own.identity.write_text("{}")
    assert main(["--out", "study", "--seeds", "0", "--report-only", *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs/study").exists() and [*own.root.iterdir()] == [own.identity]


def test_runs_that_measured_otherwise_are_refused(tmp_path, capsys, monkeypatch):
    """One that was interrupted has fewer results, or none."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        finished(tmp_path / f"runs/study-{seed}", seed, seconds=1.0)
    files = RunFiles(tmp_path / "runs/study-1")
    rows = json.loads(files.results.read_text())
    files.results.write_text(json.dumps(rows[:-1]))
    assert main(["--out", "study", "--seeds", "0", "1", "--report-only"]) == 2
    said = capsys.readouterr().err
    assert "runs/study-1: must be finished" in said and f"lacks 1 of {len(rows)} results" in said
    files.results.unlink()
    files.items.unlink()
    assert main(["--out", "study", "--seeds", "1", "--report-only"]) == 2
    assert "runs/study-1: must be a finished run" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_timings_are_means_of_steps_that_all_runs_have(tmp_path):
    runs = [finished(tmp_path / f"runs/study-{k}", k, seconds=10.0 * k) for k in (0, 1)]
    runs[1].timings["audit"] = 5.0
    assert pool(runs, tmp_path / "pooled").timings == {"evaluation": 5.0}
