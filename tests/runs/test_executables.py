"""Programs of a plan in a run: none of them is compiled again, and the numbers are the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from quickstart_runs import CONFIG, ONE_ROUND

from rmas_jax.cli.run import main
from rmas_jax.config import load_config
from rmas_jax.host.compilations import compilations
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.planning.executables import save_executables
from rmas_jax.runs.executables import made_for_here

MESH = ["runtime.mesh.data=2", "runtime.mesh.fsdp=1", "runtime.mesh.model=1"]
SETTINGS = [*ONE_ROUND, *MESH]


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Plans or runs in a process of its own, and gives its counts and its messages."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    environment = processes.environment(cache=cache)
    folder = tmp_path_factory.mktemp("runs")

    def start(command, *options, changes=()):
        given = [f"output_dir={folder}", *SETTINGS, *changes]
        overrides = [part for item in given for part in ("--set", item)]
        worker = Path(__file__).parents[1] / "executables_worker.py"
        done = subprocess.run(
            [sys.executable, worker, command, "--config", CONFIG, *overrides, *options],
            env=environment,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1]), done.stderr, folder

    return start


def results(folder):
    """All that a run has measured, without times."""
    rows = json.loads((folder / "results.json").read_text())
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "second", "memory")
    return [
        {name: value for name, value in row.items() if not any(t in name for t in timed)}
        for row in (*rows, *losses)
    ]


@pytest.mark.slow
def test_a_run_takes_the_programs_of_its_plan(call, tmp_path):
    file = tmp_path / "programs"
    counts, messages, _ = call("plan", "--executable", file)
    assert counts["code"] == 0, messages
    plain, messages, folder = call("run", changes=["name=plain"])
    assert plain["code"] == 0, messages
    ahead, messages, _ = call("run", "--executable", file, changes=["name=ahead"])
    assert ahead["code"] == 0, messages
    held = re.search(r"programs: (\d+) of its (\d+) programs were taken", messages)
    assert held and held[1] == held[2] and int(held[1]) >= 5
    # A program compiles once for its shapes, and these did not.
    assert ahead["compiled"] == plain["compiled"] - int(held[1])
    assert results(folder / "ahead") == results(folder / "plain")
    control, messages, _ = call("run", changes=["name=control", "seed=1"])
    assert control["code"] == 0 and results(folder / "control") != results(folder / "plain")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("outer.phases.0.steps=3", "outer.phases.0.steps must be 3, got 2;"),
        ("runtime.mesh.data=1", "mesh.data must be 1, got 2;"),
        ("system.topology=mine.yaml", "system.topology must be 'mine.yaml', got 'sequential';"),
    ],
)
def test_a_file_for_another_run_is_refused_before_anything_is_computed(
    change, words, tmp_path, capsys
):
    file, output = tmp_path / "programs", tmp_path / "runs"
    save_executables(file, [], made_for=made_for_here(load_config(CONFIG, SETTINGS)))
    before = compilations()
    overrides = [part for s in (*SETTINGS, f"output_dir={output}", change) for part in ("--set", s)]
    assert main(["--config", CONFIG, *overrides, "--executable", str(file)]) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith(f"error: {file}: must be made for this run: {words}"), message
    assert compilations() == before and not output.exists()


def test_names_seeds_and_folders_are_free():
    def settings(*changes):
        return made_for_here(load_config(CONFIG, [*SETTINGS, *changes]))

    here, there = (f"system.links=/{where}/links.safetensors" for where in ("here", "there"))
    free = settings(here, "name=a", "output_dir=b", "seed=7", "runtime.progress=true")
    assert free == settings(there)
    assert free != settings(there, "system.agents.critic=embedded/solver")  # the control
