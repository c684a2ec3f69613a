"""A run whose answerer learns alone: three adapters from one command, each with its method."""

from __future__ import annotations

import json

import numpy as np
import pytest
from quickstart_runs import run

from rmas_jax.evaluation.methods import METHODS
from rmas_jax.run_files import RunFiles

TUNED = {name: METHODS[name] for name in METHODS if METHODS[name].is_tuned}
SETTINGS = [  # nothing but the tuning is trained
    "inner.steps=0",
    "inner.warmup_steps=0",
    "inner.repeats=1",
    "outer={phases: [], log_every: 1, validation_size: 4}",
    "system.outer_start=torch_default",
    "tuning=[{kind: lora, learning_rate: 0.01, steps: 12, batch_size: 8, warmup_steps: 2},"
    "{kind: full, learning_rate: 0.001, steps: 2, batch_size: 8, warmup_steps: 1},"
    "{kind: soft_prompt, learning_rate: 0.01, steps: 2, batch_size: 8, warmup_steps: 1,"
    " vectors: 4}]",
    f"evaluation.methods=[{', '.join(TUNED)}]",
    "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]",
    "evaluation.gradient_batch_size=0",
]


def refused_by(tmp_path, capsys, *overrides):
    capsys.readouterr()
    assert run(tmp_path, *SETTINGS, *overrides)
    return capsys.readouterr().err


@pytest.mark.slow
def test_three_tuned_answerers_in_one_run(tmp_path, capsys):
    """Their rows, curves and labels; files that are lost come back from checkpoints."""
    message = refused_by(tmp_path, capsys, "tuning=[]")
    assert "evaluation.methods.0: answerer_lora needs an entry with kind: lora" in message
    message = refused_by(tmp_path, capsys, "tuning.0.matrices=[q_proj]")
    assert "matrices.0 must be one of attention/q_kernel, " in message
    message = refused_by(tmp_path, capsys, "tuning.1.batch_size=17")
    assert "tuning.1.batch_size=17: there are 16 items" in message

    capsys.readouterr()
    assert run(tmp_path, *SETTINGS, options=("--dry-run",)) == 0
    plan = capsys.readouterr().out.splitlines()
    at = [plan.index(line) for line in plan if line.startswith("tuning answerer_")]
    assert len(at) == 3 and "parameters, 12 steps of 8 items" in plan[at[0]]
    for name in TUNED:
        assert any(line.startswith(f"  step of {name}, 8 items at once: ") for line in plan)

    assert run(tmp_path, *SETTINGS) == 0
    files = RunFiles(tmp_path / "runs" / "quickstart")
    rows = json.loads(files.results.read_text())
    assert [(row["method"], row["rounds"], row["n"]) for row in rows] == [
        (name, 1, 4) for name in TUNED
    ]
    curves = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    assert {row["loop"] for row in curves} == {"tuning"}
    losses = [row["loss"] for row in curves if row["series"] == "answerer_lora"]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])  # the solver of the package learns
    report = files.markdown.read_text()
    assert all(method.label in report for method in TUNED.values())

    kept = {name: files.adapter(name).read_bytes() for name in TUNED}
    files.adapter("answerer_full").unlink()
    assert run(tmp_path, *SETTINGS) == 0
    assert {name: files.adapter(name).read_bytes() for name in TUNED} == kept
    assert json.loads(files.results.read_text()) == rows  # nothing is measured twice

    files.adapter("answerer_lora").write_bytes(kept["answerer_lora"][:-9])
    files.results.unlink()
    files.items.unlink()
    capsys.readouterr()
    assert run(tmp_path, *SETTINGS)
    message = capsys.readouterr().err
    assert str(files.adapter("answerer_lora")) in message and "put back a copy" in message
