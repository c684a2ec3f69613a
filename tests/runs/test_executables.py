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
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.executables import made_for_here

MESH = ["runtime.mesh.data=2", "runtime.mesh.fsdp=1", "runtime.mesh.model=1"]
SETTINGS = [*ONE_ROUND, *MESH]


def call(command, folder, *options, seed=0):
    """Plans or runs in a process of its own; returns how much it compiled, and its messages.

    Each folder has states of its own: those of an earlier run would not be computed again.
    """
    given = [f"output_dir={folder}", f"seed={seed}", *SETTINGS]
    overrides = [part for item in given for part in ("--set", item)]
    worker = Path(__file__).parents[1] / "executables_worker.py"
    done = subprocess.run(
        [sys.executable, worker, command, "--config", CONFIG, *overrides, *options],
        env=processes.environment(cache=Path(os.environ["JAX_COMPILATION_CACHE_DIR"])),
        capture_output=True,
        text=True,
    )
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["code"] == 0, done.stderr
    return counts["compiled"], done.stderr


def results(folder):
    """All that a run has measured, without times and memory, and checksums of these."""
    files = RunFiles(folder / CONFIG)
    rows = json.loads(files.results.read_text())
    losses = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if not re.search("second|bytes|crc32", name)}
        for row in (*rows, *losses)
    ]


@pytest.mark.slow
def test_a_run_takes_the_programs_of_its_plan(tmp_path):
    file, plain, ahead, control = (tmp_path / name for name in ("file", "a", "b", "c"))
    call("plan", plain, "--executable", file)
    compiled, _ = call("run", plain)
    fewer, messages = call("run", ahead, "--executable", file)
    taken = re.search(r"file: (\d+) of its (\d+) programs were taken", messages)
    # Inner steps, step, validation, a prefix of each agent, rounds, answer.
    assert taken and taken[1] == taken[2] == "8"
    assert fewer == compiled - 8
    assert results(ahead) == results(plain)
    call("run", control, seed=1)
    assert results(control) != results(plain)


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
