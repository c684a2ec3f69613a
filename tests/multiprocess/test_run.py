"""`rmas run` in two processes with four devices each, from start to report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import ended, environment, free_port, wait_until

from rmas_jax.cli.run import main
from rmas_jax.config import ConfigError, load_config
from rmas_jax.host.errors import BAD_INPUT, PREEMPTED
from rmas_jax.interop.link_files import load_links
from rmas_jax.runs import folder as run_folder

ROOT = Path(__file__).parents[2]
CONFIG = "quickstart"
TINY = [
    "inner.items=8",
    "inner.steps=4",
    "inner.repeats=2",
    "inner.warmup_steps=1",
    "outer.phases.0.steps=2",
    "system.rounds=2",
    "outer.phases.0.rounds=2",
    "outer.phases.0.latents=teacher_forced",  # quicker to compile
    "outer.phases.0.batch_size=8",
    "outer.phases.0.warmup_steps=1",
    "outer.validation_size=8",
    "data.train_size=16",
    "evaluation.benchmarks=[{name: data, splits: ['test[:18]']}]",  # the last batch is not full
    "evaluation.batch_size=8",
    "evaluation.rounds=[2]",
    "evaluation.methods=[recursive_text, recursive_mas]",
    "evaluation.gradient_batch_size=8",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]
MESH = ["runtime.mesh.data=4", "runtime.mesh.fsdp=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def options(output, settings):
    changes = [f"output_dir={output}", *TINY, *settings]
    return ["--config", CONFIG, *(part for change in changes for part in ("--set", change))]


def start(cache, *commands):
    """The two processes of a run, with one command or with two."""
    join = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    return [
        subprocess.Popen(
            [sys.executable, "experiments/run.py", *commands[-process], *join, str(process)],
            env={
                **environment(cache=cache),
                "JAX_NUM_CPU_DEVICES": "4",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]


def differ(*files):
    """Whether two files of links differ by ten times what is put down to rounding."""
    pairs = zip(*(jax.tree.leaves(load_links(file)) for file in files), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs) > 1e-4


def items(folder):
    lines = (folder / "items.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow  # three minutes
def test_two_processes_are_stopped_go_on_and_equal_one(cache, tmp_path, capsys):
    two, one = tmp_path / "two" / "quickstart", tmp_path / "one" / "quickstart"
    command = options(tmp_path / "two", MESH)
    processes = start(cache, command)
    answers = two / "items.jsonl"
    wait_until(lambda: answers.is_file() and answers.stat().st_size > 0, processes)  # it evaluates
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = ended(processes)
    assert codes == [PREEMPTED] * 2, outputs
    assert "evaluation stopped in" in outputs[0]
    assert not (two / "report.html").exists()

    codes, outputs = ended(start(cache, command))
    assert codes == [0, 0], outputs
    assert "outer loop: finished before" in outputs[0] and "report.html" in outputs[0]
    assert "finished before" not in outputs[1] and "report.html" not in outputs[1]

    assert main(options(tmp_path / "one", [])) == 0  # one device
    capsys.readouterr()
    assert items(two) == items(one)
    for name in ("aligned", "trained"):
        found, expected = (load_links(f / "links" / f"{name}.safetensors") for f in (two, one))
        for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert differ(*(two / "links" / f"{name}.safetensors" for name in ("aligned", "trained")))
    norms = [
        [row["norm"] for row in json.loads((f / "gradients.json").read_text())] for f in (two, one)
    ]
    np.testing.assert_allclose(*norms, rtol=0.05)
    curves = [(f / "metrics.jsonl").read_text().count("\n") for f in (two, one)]
    assert curves[0] == curves[1]  # one process writes

    before = (two / "items.jsonl").stat().st_mtime_ns
    codes, outputs = ended(start(cache, command))
    assert codes == [0, 0], outputs
    for step in ("inner loop", "outer loop", "evaluation", "gradient norms"):
        assert f"{step}: finished before" in outputs[0]
    assert (two / "items.jsonl").stat().st_mtime_ns == before


def test_an_error_that_one_process_finds_ends_both_with_one_message(cache, tmp_path):
    commands = [options(tmp_path, [*MESH, *own]) for own in ([], ["system.agents.critic=nobody"])]
    codes, outputs = ended(start(cache, *commands))
    assert codes == [BAD_INPUT] * 2, outputs
    assert "error: nobody: no such directory" in outputs[0] and "(in process 1)" in outputs[0]
    assert "error:" not in outputs[1]
    assert not (tmp_path / "quickstart").exists()


@pytest.mark.long  # as another error does
def test_a_mesh_that_leaves_devices_out_ends_both_with_one_message(cache, tmp_path):
    codes, outputs = ended(start(cache, options(tmp_path, [])))
    assert codes == [BAD_INPUT] * 2, outputs
    assert "number of devices (8), got data=1 x fsdp=1 x model=1 = 1" in outputs[0]
    assert "of all 2 processes" in outputs[0] and "error:" not in outputs[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--processes 2", "got no --coordinator and --process"),
        ("--coordinator a:1 --processes 2", "got no --process"),
        (
            "--coordinator a:1 --processes 2 --process 2",
            "below --processes 2, got 2",
        ),
        (
            "--coordinator a:1 --processes 2 --process -1",
            "below --processes 2, got -1",
        ),
        ("--coordinator a:1 --processes 0 --process 0", "--processes must be at least 1, got 0"),
        (
            "--coordinator a --processes 2 --process 0",
            "must be HOST:PORT, such as 10.0.0.1:8476, got 'a'",
        ),
        (
            "--coordinator a:0 --processes 2 --process 0",
            "must be HOST:PORT, such as 10.0.0.1:8476, got 'a:0'",
        ),
        ("--distributed --process 1", "must be unset with --distributed"),
    ],
)
def test_options_of_processes_that_do_not_fit(given, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--config", CONFIG, *given.split()])
    assert end.value.code == BAD_INPUT
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda first, *found: ({**first, "data": "other"}, *found), "they differ in data"),
        (
            lambda first, done, found: (first, done, f"{found} elsewhere"),
            "that all processes share",
        ),
    ],
)
def test_processes_that_do_not_share_a_run(tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(run_folder, "broadcast_from_first", lambda call: change(*call()))
    config = load_config(CONFIG, [f"output_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=words), run_folder.open_folder(config, {"data": "1.0"}):
        pass
