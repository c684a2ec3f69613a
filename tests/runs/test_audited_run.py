"""A run with an audit: declared before all, measured for all seeds, kept to by later starts."""

import json

import pytest
from quickstart_runs import CONFIG

from rmas_jax.config import ConfigError, load_config
from rmas_jax.run_files import AuditFiles
from rmas_jax.runs.run import run

SETTINGS = [
    "inner.steps=0",
    "inner.repeats=1",
    "outer.phases=[]",
    "system.rounds=1",
    "data.train_size=8",
    "evaluation.rounds=[1]",
    "evaluation.methods=[recursive_mas]",
    "evaluation.batch_size=4",
    "evaluation.gradient_batch_size=0",
    "evaluation.seeds=[4,5,6]",
    "evaluation.sampling.temperature=1",
    "evaluation.audit={messages: [other], scopes: [all], draws: 1}",
    "runtime.progress=false",
]
QUESTIONS = "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]"


def start(folder, *settings):
    return run(load_config(CONFIG, [*SETTINGS, QUESTIONS, f"output_dir={folder}", *settings]))


@pytest.mark.slow  # several starts of a run
def test_an_audit_is_declared_before_all_and_no_later_start_declares_another(tmp_path):
    finished = start(tmp_path)
    files, audit = finished.files, AuditFiles(finished.files.audit)
    times = [
        path.stat().st_mtime_ns
        for path in (audit.protocol, files.aligned_links, files.results, audit.links, audit.results)
    ]
    assert times == sorted(times) and len(set(times)) == len(times)
    rows = json.loads(audit.results.read_text())
    assert [(row["seed"], row["method"]) for row in rows] == [
        (seed, name) for seed in (4, 5, 6) for name in ("true", "other.0")
    ]
    # The true message is the plain evaluation, seed by seed.
    assert {row["seed"] for row in json.loads(files.results.read_text())} == {4, 5, 6}
    plain, true = (
        {
            (item["seed"], item["id"]): item["text"]
            for item in map(json.loads, path.read_text().splitlines())
            if item["method"] == method
        }
        for path, method in ((files.items, "recursive_mas"), (audit.items, "true"))
    )
    assert plain == true
    assert "a random effect" in files.markdown.read_text()

    before = {path: path.read_bytes() for path in (files.config, files.items, audit.protocol)}
    more = "evaluation.benchmarks=[{name: data, splits: ['test[:4]', 'test[:2]']}]"
    for change, part in ((more, r"audit\.benchmarks"), ("evaluation.seeds=[4]", r"audit\.seeds")):
        with pytest.raises(ConfigError, match=f"it differs in {part}"):
            start(tmp_path, change)
    assert before == {path: path.read_bytes() for path in before}
    assert start(tmp_path, "evaluation.methods=[no_latents]").reused[0] == "inner loop"
