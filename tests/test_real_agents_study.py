"""The study with one command: its parts, and how it ends where one fails."""

import pytest
from blind_pair import AGENTS, SET, team_of

from experiments.real_agents import curve, skills, study
from experiments.real_agents.fetch import MODELS
from experiments.real_agents.options import CONFIG, links_of_seeds, write_report
from experiments.real_agents.trials import TRIALS
from rmas_jax.cli import run
from rmas_jax.config import load_config
from rmas_jax.links import count_parameters

SMALL = (  # of the alignment
    *("data.evidence.train=16", "data.evidence.validation=4", "data.evidence.test=4"),
    *("inner.items=16", "inner.steps=2", "inner.batch_size=8", "inner.warmup_steps=0"),
    "evaluation.batch_size=4",
)


def parts(*options):
    return [*study.parts(study.parser().parse_args(["--out", "o", *options]))]


def named(*options):
    return {part.name: part.options for part in parts(*options)}


def test_only_models_that_are_named_are_downloaded():
    assert named()["fetch"] == ["--out", "o/models", "--models", "smollm2"]
    assert named("--planner", "gemma3")["fetch"][-2:] == ["smollm2", "gemma3"]
    assert "fetch" not in named("--planner", "a/folder", "--solver", "hub/id")


def test_each_role_is_tuned_from_its_model_and_the_team_has_what_was_tuned():
    models = ["--planner", "gemma3", "--solver", "hub/id"]
    found = [part.options for part in parts(*models) if part.name.startswith("skill")]
    tuned = [skills.parser().parse_args(options) for options in found]
    assert [(of.role, of.model) for of in tuned] == [
        ("planner", f"o/models/gemma3/{MODELS['gemma3'].file}"),
        ("solver", "hub/id"),
        ("solver", f"o/skills/solver-asked/{skills.MODEL}"),
    ]
    team = {f"system.agents.{of.role}={of.out / skills.MODEL}" for of in (tuned[0], tuned[2])}
    for name in ("alignment, seed 0", "free_vectors", "probe", "curve"):
        assert team < {*named("--size", "full", *models)[name]}


@pytest.mark.parametrize("size", study.SIZES)
def test_sizes_differ_in_m_seeds_messages_and_trainings(size):
    own, of = named("--size", size), study.SIZES[size]
    args = curve.parser().parse_args(own["curve"])
    curve.check(args)
    assert (tuple(args.steps), args.messages) == (of.steps, of.messages)
    assert tuple(args.training) == of.trainings and {*of.trainings} < {*TRIALS}
    folders = [f"o/alignment/seed-{seed}" for seed in range(of.seeds)]
    assert args.links == [f"{folder}/links/aligned.safetensors" for folder in folders]
    assert args.out.name == "curve"
    assert ("free_vectors" in own) == bool(of.bound) and ("probe" in own) == of.is_probed
    if size == "full":
        assert own["probe"][own["probe"].index("--links") + 1 :] == args.links


def test_the_alignment_makes_the_links_that_the_curve_reads(tmp_path):
    """Of every M, with few steps; another seed gives other ones."""
    team = team_of(2)
    for seed in range(2):
        part = study.alignment(tmp_path, seed, ["--set", AGENTS])
        more = [option for field in SMALL for option in ("--set", field)]
        assert run.main([*part.options, *SET, *more]) == 0
    paths = [str(study.aligned(tmp_path, seed)) for seed in range(2)]
    links = links_of_seeds(team, load_config(CONFIG, [AGENTS]), paths)
    assert count_parameters(links[0].outer["planner->solver"]) > 0
    assert len({path.read_bytes() for path in map(study.Path, paths)}) == 2
    assert len([*(tmp_path / "states").glob("*/states.npy")]) == 2  # read once for both seeds


def test_it_ends_at_the_first_part_that_fails(tmp_path, capfd):
    """A model that is not there: no part after that one runs."""
    missing = str(tmp_path / "none")
    options = ["--out", str(tmp_path), "--planner", missing, "--solver", "embedded/solver"]
    assert study.main(options) == 2
    found = capfd.readouterr()
    assert "none" in found.err and found.out.count("== python -m") == 1
    assert "| skill of planner | " in found.out and "skill of solver" not in found.out
    assert study.main([*options, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("== python -m") == 5


def test_a_curve_of_another_size_is_refused_before_anything_runs(tmp_path, capsys):
    report = {"settings": {"messages": 64}, "rows": []}
    write_report(tmp_path / "curve" / curve.REPORT, report)
    options = ["--out", str(tmp_path), "--dry-run"]
    assert study.main([*options, "--size", "small"]) == 0
    assert "experiments.run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.main([*options, "--size", "medium"])
    assert "--size medium asks about 128 messages" in capsys.readouterr().err
