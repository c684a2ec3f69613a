"""A run on object storage: preempted on one host, finished on another with another mesh, read."""

from __future__ import annotations

import json
import signal

import fake_storage
import pytest
from quickstart_runs import CONFIG, ONE_ROUND

from rmas_jax.cli import report
from rmas_jax.cli.run import main
from rmas_jax.host import storage
from rmas_jax.host.errors import BAD_INPUT, PREEMPTED
from rmas_jax.training.phases import loop as phase_loop

URL = "fake://bucket/runs"
SHORT = [*ONE_ROUND, "evaluation.methods=[recursive_mas]", "evaluation.gradient_batch_size=0"]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv(fake_storage.ROOT, str(tmp_path / "storage"))
    return tmp_path / "storage" / "bucket" / "runs" / CONFIG


@pytest.fixture
def another_host(tmp_path, monkeypatch):
    """Forgets all copies."""
    hosts = iter(range(9))

    def move():
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host-{next(hosts)}"))
        storage.copies.cache_clear()
        storage.open_mirror.cache_clear()

    move()
    yield move
    move()


def run(*overrides):
    settings = [f"output_dir={URL}", *SHORT, "outer.phases.0.steps=3", *overrides]
    return main(["--config", CONFIG, *(part for item in settings for part in ("--set", item))])


@pytest.mark.slow
def test_a_run_is_preempted_on_one_host_and_finished_on_another(
    bucket, another_host, monkeypatch, capsys, caplog
):
    original = phase_loop.put_batch

    def ask_to_end(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase_loop, "put_batch", ask_to_end)
        assert run() == PREEMPTED
    assert "after step 0 of 3 and is saved" in capsys.readouterr().err
    assert not (bucket / storage.LEASE).exists()
    assert [f.name for f in (bucket / "checkpoints" / "on_policy").glob("[0-9]*")] == [
        "1.safetensors"
    ]
    assert list((bucket.parent / "data").rglob("*.array_record*"))
    assert list((bucket.parent / "states").glob("*/states.npy"))

    another_host()
    assert run("seed=1") == BAD_INPUT
    assert "holds another run's results" in capsys.readouterr().err
    assert run("runtime.mesh.data=null", "runtime.mesh.fsdp=2", "name=elsewhere") == BAD_INPUT
    assert "outer.phases.0.batch_size must be a multiple of 8" in capsys.readouterr().err

    another_host()
    assert run("runtime.mesh.data=2") == 0
    assert f"report: {URL}/{CONFIG}/report.html" in capsys.readouterr().out
    assert "inner loop: finished before" in caplog.text
    rows = [json.loads(line) for line in (bucket / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["series"] == "on_policy"]
    assert steps == sorted(set(steps)) and steps[-1] == 2
    for name in ("report.html", "results.json", "links/trained.safetensors", "timings.json"):
        assert (bucket / name).stat().st_size > 0, name
    assert not (bucket / storage.LEASE).exists() and not (bucket / "lock").exists()

    another_host()
    (bucket / "report.html").unlink()
    assert report.main([f"{URL}/{CONFIG}"]) == 0
    assert f"{URL}/{CONFIG}/report.html" in capsys.readouterr().out
    assert (bucket / "report.html").stat().st_size > 0
    caplog.clear()
    sent = len(fake_storage.READY)
    assert run("runtime.mesh.data=2") == 0
    assert "outer loop: finished before" in caplog.text and len(fake_storage.READY) == sent
