"""Programs of a plan in a run: none of them is compiled again, and the numbers are the same."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from placed import placed
from quickstart_runs import CONFIG, ONE_ROUND
from teams import build_team, with_agents

from rmas_jax.cli.run import main
from rmas_jax.config import load_config
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.batches import batches
from rmas_jax.evaluation.refill import write_refilled
from rmas_jax.evaluation.rollouts import Work, write_batches
from rmas_jax.evaluation.shared import Shared
from rmas_jax.host.compilations import compilations
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.partition import Policies
from rmas_jax.planning.compiling import Compilations
from rmas_jax.planning.executables import (
    in_use,
    read_executables,
    save_executables,
    without_cache,
)
from rmas_jax.planning.programs import plan_program
from rmas_jax.prompts import declared_width
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.executables import made_for_here
from rmas_jax.runs.plan_inputs import RunInputs
from rmas_jax.runs.plan_programs import plan_answers
from rmas_jax.sharding import make_mesh, put_whole

MESH = ["runtime.mesh.data=2", "runtime.mesh.fsdp=1", "runtime.mesh.model=1"]
SETTINGS = [*ONE_ROUND, *MESH, "evaluation.refill_from=1"]


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
    # Inner steps, step, validation, three prefixes, rounds, four programs of answers in a pool.
    assert taken and taken[1] == taken[2] == "11"
    assert fewer == compiled - 11
    assert results(ahead) == results(plain)
    call("run", control, seed=1)
    assert results(control) != results(plain)


QUESTIONS = ["w a", "the from", "a b", "to a", "does where", "b the", "where b", "from to"]


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 1, 1)], ids=["four_devices", "one_device"])
@pytest.mark.parametrize("refills", [True, False], ids=["pool", "batches"])
def test_answers_compile_none_of_their_planned_programs(refills, sizes, tmp_path, caplog):
    team, links = build_team(tmp_path / "team")
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    agents = {role: placed(agent, mesh, Policies()) for role, agent in team.agents.items()}
    team = with_agents(team, agents, mesh)
    how = Answering(8, SamplingConfig(temperature=2.0), rollouts=2, refills=refills)
    found = list(batches(np.arange(len(QUESTIONS)), 4))
    prompts = [
        team.encode([QUESTIONS[row] for row in batch.rows], block_width=declared_width)
        for batch in found
    ]
    config = load_config(CONFIG, ["evaluation.rounds=[2]"])
    compilations = Compilations()

    def compile_(program):
        planned = plan_program(program, compilations)
        programs.append((planned.lowered, planned.executable))
        return planned.outputs

    programs, file = [], tmp_path / "programs"
    with without_cache():
        plan_answers(RunInputs(config, team, (), (), prompts[0], how), compile_)
        save_executables(file, programs, made_for={})
    links = put_whole(links, mesh)

    def fresh():
        shared = Shared(2**30)  # as by default in a run
        return Answerer(team, links, rounds=2, answering=how, shared=shared)

    written = answers(fresh(), found, prompts)
    executables = read_executables(file, made_for={})
    caplog.set_level("DEBUG", logger="rmas_jax.planning.executables")
    with in_use(executables):
        assert answers(fresh(), found, prompts) == written
    # A prefix of each agent, rounds, and four programs of a pool or one of texts.
    assert len(executables.taken) == len(programs) == (8 if refills else 5)
    assert "is taken" in caplog.text and "is not in it" not in caplog.text


def answers(answerer, found, prompts):
    """The texts of all rollouts, by batch and rollout."""
    write = write_refilled if answerer.refills else write_batches
    works = [Work(batch, range(answerer.answering.rollouts)) for batch in found]
    of_batch = {int(batch.rows[0]): prompt for batch, prompt in zip(found, prompts, strict=True)}
    listen = functools.cache(lambda row: answerer.listen(of_batch[row]))
    return {
        (int(one.batch.rows[0]), one.rollout): one.answers.rollouts[0].texts
        for one in write(answerer, lambda rows: listen(int(rows[0])), works, seed=3)
    }


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
