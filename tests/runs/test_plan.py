"""Plans: the programs that would run, compiled from shapes, here and for slices not at hand."""

import dataclasses
import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from executables_worker import compiled
from quickstart_runs import TINY

from rmas_jax.cli.plan import main
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.links import Links, count_parameters, init_link
from rmas_jax.models import abstract_agent
from rmas_jax.models.directories import local_directory
from rmas_jax.models.flops import read_flops
from rmas_jax.planning.chips import parse_slice
from rmas_jax.planning.compiling import Compilations
from rmas_jax.planning.executables import (
    in_use,
    read_executables,
    save_executables,
    without_cache,
)
from rmas_jax.planning.programs import plan_program, tree_bytes
from rmas_jax.runs.learned_data import encode_outer
from rmas_jax.runs.plan import mesh_sizes, plan_run, weight_bytes
from rmas_jax.runs.plan_inputs import Widths, inputs_of_data, inputs_of_widths
from rmas_jax.runs.plan_programs import phase_programs
from rmas_jax.runs.plan_search import candidates, changed_config
from rmas_jax.runs.plan_shapes import abstract_links
from rmas_jax.runs.resolve import resolve
from rmas_jax.sharding import make_mesh, put_batch
from rmas_jax.training.outer.loop import TrainableLinks, phase_batches
from rmas_jax.training.phases.loop import compile_step

ROLES = ("planner", "critic", "solver")


@pytest.fixture
def config(tmp_path):
    return load_config("quickstart", [*TINY, f"output_dir={tmp_path}"])


def check_memory(plan, executable, *, beside=0):
    """A plan's memory is the compiler's and that of arrays beside it, or up to 10 % more."""
    stats = executable.memory_analysis()
    added = stats.output_size_in_bytes - stats.alias_size_in_bytes
    added += stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    needed = stats.argument_size_in_bytes + added + beside
    assert needed <= plan.total_memory <= 1.1 * needed
    # The control: not without what the program adds to its arguments.
    assert plan.total_memory - added < needed


@pytest.mark.slow
def test_the_planned_step_is_the_step_that_runs(config, tmp_path):
    abstract = inputs_of_data(resolve(config, is_abstract=True))
    planned, _ = phase_programs(abstract.team, abstract.phases[0])
    leaves = jax.tree.leaves((planned.arguments, abstract.team.agents))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)

    real = resolve(config)
    system, phase = real.team.system, config.outer.phases[0]
    keys = iter(jax.random.split(jax.random.key(0), 6))
    links = Links(
        {name: init_link(link, next(keys)) for name, link in system.inner.items()},
        {name: init_link(link, next(keys)) for name, link in system.outer.items()},
    )
    trainable = TrainableLinks(real.team, phase, links)
    state, step = compile_step(trainable)
    data, _ = encode_outer(real)
    batch = phase_batches(real.team, phase, data, key=jax.random.key(config.seed)).longest()
    lowered = step.lower(trainable.agents, put_batch(batch, real.team.mesh), state)
    assert planned.lower().as_text() == lowered.as_text()
    # The control: a batch of other rows is another program.
    other = put_batch(jax.tree.map(lambda x: x[:1], batch), real.team.mesh)
    assert planned.lower().as_text() != step.lower(trainable.agents, other, state).as_text()

    # Compiled ahead of time from shapes, it runs on the arrays and compiles nothing.
    placed = put_batch(batch, real.team.mesh)
    with without_cache():
        found = plan_program(planned, Compilations())
        programs = [(found.lowered, found.executable)]
        save_executables(tmp_path / "programs", programs, made_for={})
    # Its memory is that of the arrays on a device, and what the compiler adds for them.
    device = real.team.mesh.devices.flat[0]
    arrays = jax.tree.leaves((real.team.agents, state, placed))
    parts = [part for array in arrays for part in array.addressable_shards if part.device == device]
    held = sum(part.data.nbytes for part in parts)
    executable = lowered.compile()
    check_memory(found.plan, executable)
    assert held == executable.memory_analysis().argument_size_in_bytes
    same, ahead = compile_step(trainable)
    with in_use(read_executables(tmp_path / "programs", made_for={})):
        known = len(compiled())
        _, metrics = ahead(trainable.agents, placed, same)
        assert len(compiled()) == known
    _, expected = step(trainable.agents, placed, state)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)


@pytest.fixture
def without_weights(tmp_path):
    """Overrides that name directories of `config.json` alone."""
    overrides = []
    for role in ROLES:
        folder = tmp_path / role
        folder.mkdir()
        source = local_directory(f"embedded/{role}", patterns=())
        shutil.copy(source / "config.json", folder)
        overrides.append(f"system.agents.{role}={folder}")
    return overrides


SMALL = [*TINY, "outer.phases.0.batch_size=8", "evaluation.batch_size=8", "data.train_size=8"]


@pytest.mark.slow  # a minute and a half
def test_a_slice_is_planned_from_the_configurations_of_agents_alone(
    without_weights, tmp_path, capsys
):
    changes = [part for item in [*SMALL, *without_weights] for part in ("--set", item)]
    file = tmp_path / "plan.json"
    options = ["--slice", "H100:8", "--mesh", "2,4,1", "--json", str(file)]
    widths = ["--prompt-tokens", "16", "--body-tokens", "4", "--text-tokens", "8"]
    assert main(["--config", "quickstart", *changes, *options, *widths]) == 0
    printed = capsys.readouterr().out
    assert "prompts of 16 tokens and 4 in every round besides the slots, texts of 8" in printed
    assert "least times on H100:8, estimated from the compiled programs:" in printed
    plan = json.loads(file.read_text())
    assert plan["mesh"] == {"data": 2, "fsdp": 4, "model": 1}
    programs = {program["program"]: program for program in plan["programs"]}
    assert list(programs)[1:] == [
        "step of on_policy",
        "validation of on_policy",
        *(f"prefix of {role}" for role in ROLES),
        "rounds, 2",
        "answer, 16 tokens",
    ]
    for program in programs.values():
        assert program["total_memory"] == sum(program["memory"].values())
        assert program["seconds"] == max(
            program["compute_s"], program["memory_s"], program["link_s"] + program["latency_s"]
        )
    assert programs["step of on_policy"]["link_bytes"] > 0

    # With whole weights on every device, a device has an eighth of the rows and of the FLOPs.
    changes += ["--set", "inner.steps=0", "--set", "outer.phases=[]"]
    options = ["--slice", "H100:8", "--mesh", "8,1,1", "--json", str(file)]
    assert main(["--config", "quickstart", *changes, *options, *widths]) == 0
    *prefixes, rounds, _ = json.loads(file.read_text())["programs"]
    agents = {role: abstract_agent(f"embedded/{role}") for role in ROLES}
    count = sum(count_parameters(params) for _, params in agents.values())
    assert rounds["memory"]["weights"] == 4 * count
    steps, slots = 4, 4
    body, expected = slots + 4, 0.0
    for role, (model, _) in agents.items():
        expected += float(read_flops(model.config, 16))
        for _ in range(1 if role == ROLES[-1] else 2):  # in the last round the answerer writes
            expected += float(read_flops(model.config, body + steps - 1, 16))
    flops = sum(program["flops"] for program in (*prefixes, rounds))
    assert expected < flops < 1.5 * expected  # masked keys and links count in a program


def test_a_mesh_is_found_for_the_chips(without_weights):
    config = load_config("quickstart", [*SMALL, *without_weights])
    assert mesh_sizes(config, parse_slice("v5e:2x2")) == (1, 4, 1)
    assert mesh_sizes(config, parse_slice("v5e:8x8")) == (1, 8, 8)
    many = ["outer.phases.0.batch_size=96", "evaluation.batch_size=96"]
    config = load_config("quickstart", [*SMALL, *without_weights, *many])
    wanted = parse_slice("H100:96")
    assert mesh_sizes(config, wanted) == (6, 16, 1)
    # Weights that take more than half of the memory of 16 devices, but not of 32.
    memory = 2 * weight_bytes(config) / 24
    chip = dataclasses.replace(wanted.chip, chip_memory=memory)
    assert mesh_sizes(config, dataclasses.replace(wanted, chip=chip)) == (4, 24, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slice", "v5e"], "a slice must be CHIP:SIZES"),
        (["--slice", "H100:8", "--mesh", "8"], "--mesh must be DATA,FSDP,MODEL"),
        (["--slice", "H100:8", "--mesh", "2,2,1"], "must be the number of devices (8)"),
        (["--slice", "H100:9"], "at most 8 devices, got H100:9"),
        (["--slice", "H100:8", "--text-tokens", "0"], "--text-tokens must be at least 1"),
    ],
)
def test_what_is_no_slice_is_refused(options, message, capsys):
    assert main(["--config", "quickstart", *options]) == BAD_INPUT
    assert message in capsys.readouterr().err


def test_options_of_a_slice_need_one(capsys):
    with pytest.raises(SystemExit):
        main(["--config", "quickstart", "--mesh", "1,1,1"])
    assert "--mesh must be unset without --slice" in capsys.readouterr().err


def test_a_program_that_does_not_fit_says_what_would(without_weights):
    untrained = ["inner.steps=0", "outer.phases=[]", "evaluation.refill_from=1"]
    config = load_config("quickstart", [*SMALL, *without_weights, *untrained])
    plan = plan_run(
        config,
        mesh=make_mesh(8, 1, 1),
        wanted=parse_slice("H100:8"),
        widths=Widths(prompt=16, body=4, text=8),
    )
    assert not any("does not fit" in line for line in plan.lines())
    names = [program.name for program in plan.programs]
    assert names == [
        *(f"prefix of {role}" for role in ROLES),
        "rounds, 2",
        "answer, prompt",
        "answer, first token",
        "answer, rows of the pool",
        "answer, 16 tokens",
    ]
    resident = tree_bytes((plan.inputs.team.agents, abstract_links(plan.inputs.team)))
    solver = tree_bytes(plan.inputs.team.agents["solver"])
    beside = {"rounds, 2": 0, "answer, 16 tokens": resident - solver}
    for program, (_, executable) in zip(plan.programs, plan.compiled, strict=True):
        if program.name in beside:  # which use all of their arguments
            check_memory(program, executable, beside=beside[program.name])
    small = parse_slice("H100:8")
    chip = small.chip.__class__(**{**vars(small.chip), "chip_memory": 2.5e6})
    plan = plan.__class__(**{**vars(plan), "wanted": small.__class__(chip, small.sizes)})
    told = [line for line in plan.lines() if "does not fit" in line]
    assert told and all("would fit" in line or "split them" in line for line in told)


def test_candidates_divide_the_batch_and_the_chips():
    config = load_config("quickstart", ["outer.phases=[]", "evaluation.batch_size=2"])
    found = list(candidates(config, 4))
    meshes = [(settings.mesh, settings.scale) for settings in found]
    assert meshes[0] == ((2, 1, 2), 1)
    assert ((1, 4, 1), 1) not in meshes and ((1, 4, 1), 2) in meshes
    for (data, fsdp, model), scale in meshes:
        assert data * fsdp * model == 4 and 2 * scale % (data * fsdp) == 0
    assert len(set(found)) == len(found)


def test_candidates_change_one_thing_at_a_time():
    config = load_config("quickstart", SMALL)
    own = config.runtime.policies
    found = list(candidates(config, 4))
    (remat,) = {phase.remat for phase in config.outer.phases}
    for settings in found:
        policies = dataclasses.asdict(settings.policies)
        changed = [phase for phase, policy in policies.items() if policy != getattr(own, phase)]
        assert len(changed) + (settings.scale > 1) + (settings.remat != (remat,)) <= 1
        assert not changed or settings.mesh[1] > 1  # nothing to gather on another mesh
        made = changed_config(config, settings)
        assert made.runtime.policies == settings.policies
        assert made.outer.phases[0].remat is settings.remat[0]
    assert {settings.remat for settings in found} == {(True,), (False,)}
    varied = {dataclasses.astuple(settings.policies) for settings in found}
    assert len(varied) == 1 + 4 * 2  # one phase of four takes another of three policies


@pytest.mark.slow
def test_a_search_ranks_by_throughput(without_weights, capsys):
    overrides = [*SMALL, *without_weights, "outer.phases=[]", "evaluation.batch_size=4"]
    overrides += ["evaluation.rounds=[1]", "system.latent_steps=2"]
    changes = [part for item in overrides for part in ("--set", item)]
    options = ["--slice", "H100:4", "--search", "2", "--prompt-tokens", "8", "--body-tokens", "2"]
    assert main(["--config", "quickstart", *changes, *options]) == 0
    first, *lines = capsys.readouterr().out.splitlines()[-3:]
    assert first == "settings by estimated throughput:"
    rates = [float(re.search(r"([\d.e+]+) items/s", line)[1]) for line in lines]
    assert rates[0] >= rates[1] > 0
    # Whole weights on every device, without a collective, before weights that are gathered.
    assert "data=4 x fsdp=1 x model=1" in lines[0] and "data=2 x fsdp=2" in lines[1]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra: tpu)")
def test_a_slice_of_tpus(without_weights, tmp_path):
    """In a process of its own: the backend must not have started."""
    import os
    import subprocess
    import sys

    changes = [part for item in [*SMALL, *without_weights] for part in ("--set", item)]
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "rmas_jax.cli", "plan", "--config", "quickstart", *changes]
    command += ["--slice", "v5e:2x4", "--mesh", "1,8,1", "--json", str(file)]
    root = Path(__file__).parents[2]
    # libtpu refuses flags of the CPU's compiler.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    environment["XLA_FLAGS"] = ""
    subprocess.run(command, check=True, cwd=root, env=environment)
    programs = json.loads(file.read_text())["programs"]
    assert all(program["flops"] > 0 and program["memory"]["code"] > 0 for program in programs)


def test_assumed_and_real_inputs_have_one_form(config):
    real = inputs_of_data(resolve(config, is_abstract=True))
    assumed = inputs_of_widths(config, real.team.mesh, Widths())
    assert jax.tree.structure(assumed.team.agents) == jax.tree.structure(real.team.agents)
    assert set(assumed.prompts) == set(real.prompts) == set(ROLES)
    assert [p.config for p in assumed.phases] == [p.config for p in real.phases]
