"""The study with one command: its parts, and how it ends where one fails."""

import itertools
from pathlib import Path

import pytest
from blind_pair import AGENTS, SET, team_of

from experiments.real_agents import crossing, curve, skills, study
from experiments.real_agents.fetch import MODELS
from experiments.real_agents.options import CONFIG, links_of_seeds, write_report
from experiments.real_agents.trials import TRIALS
from experiments.studies import seeds
from rmas_jax.cli import run
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.links import count_parameters

SMALL = (  # of training and questions
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
    team = {f'system.agents.{of.role}="{of.out / skills.MODEL}"' for of in (tuned[0], tuned[2])}
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


HOPS = ("--about", "hops")


def changes(options):
    """The fields that options change."""
    return [value for option, value in itertools.pairwise(options) if option == "--set"]


@pytest.mark.parametrize("size", study.SIZES)
def test_the_team_of_hops_is_the_shipped_one_but_for_what_a_size_changes(size):
    own, of = named(*HOPS, "--size", size), study.SIZES[size]
    assert own["fetch"][-2:] == ["smollm2", "gemma3"]
    for role in study.ROLES:
        tuned = skills.parser().parse_args(own[f"skill of {role}-of-four-hops"])
        assert (tuned.role, tuned.evidence[0]) == (role, "hops=4")
    copies = named(*HOPS, "--planner", "smollm2")["skill of planner-of-four-hops"]
    assert ("--steps", "100") in itertools.pairwise(copies)  # Gemma needs 40
    config, shipped = load_config(study.TEAM, changes(own["hops"])), load_config(study.TEAM)
    assert [Path(agent).parent.name for agent in config.system.agents.values()] == [
        f"{role}-of-four-hops" for role in study.ROLES
    ]
    by_default = study.team_of(
        study.Path("runs/real_agents"), **{r: study.of_four(r) for r in study.ROLES}
    )
    root = Path(study.__file__).parents[2]
    assert by_default[1::2] == [
        f'system.agents.{role}="{Path(agent).relative_to(root)}"'
        for role, agent in shipped.system.agents.items()
    ]
    assert config.data == shipped.data and config.evaluation.rounds == shipped.evaluation.rounds
    if of.of_hops:
        assert "no_latents" in config.evaluation.methods and not config.outer.phases
        assert config.inner.items < shipped.inner.items and "ceiling" not in own
    else:
        assert (config.inner, config.outer) == (shipped.inner, shipped.outer)
        assert (
            load_config(study.CEILING, own["ceiling"][3::2])
            .system.agents["solver"]
            .endswith("solver-of-four-hops/model")
        )
    links = crossing.parser().parse_args(own["crossing"]).links
    assert links == [f"o/runs/hops-{seed}/links/aligned.safetensors" for seed in range(of.seeds)]


def test_the_runs_of_hops_make_the_links_whose_crossing_is_measured(tmp_path):
    [hops, crossed] = parts("--about", "hops", "--out", str(tmp_path))[-2:]
    more = [AGENTS, *SMALL, "data.evidence.pairs=2", "inner.lists=4"]
    more += ["evaluation.benchmarks=[{name: data, splits: [test]}]"]
    changed = [option for field in more for option in ("--set", field)]
    assert seeds.main([*hops.options, *changed]) == 0
    assert "latent, aligned links" in (tmp_path / "hops/README.md").read_text()
    assert crossing.main([*crossed.options, *changed, "--items", "2"]) == 0
    assert (tmp_path / "crossing" / crossing.REPORT).is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--solver", ""], "--solver must be smollm2 or gemma3, a GGUF file"),
        (["--planner", "/nowhere/model.gguf"], "got '/nowhere/model.gguf'"),
        (["--out", __file__], "must be a folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as ended:
        study.main(["--out", str(tmp_path), "--dry-run", *options])
    assert ended.value.code == BAD_INPUT and words in capsys.readouterr().err


def test_any_folder_may_be_the_output(tmp_path):
    """Its name is no part of a field's syntax."""
    strange = str(tmp_path / "a: b #1 [x]")
    for about, name in (("curve", "alignment, seed 0"), ("hops", "hops")):
        options = named("--about", about, "--out", strange)[name]
        found = load_config(study.TEAM, changes(options))
        assert found.output_dir.startswith(strange)
        assert all(agent.startswith(strange) for agent in found.system.agents.values())


def test_it_ends_at_the_first_part_that_fails(tmp_path, capfd):
    """A model that is not there: no part after that one runs."""
    missing = "none/such"  # a hub id, so that only the part itself finds out
    options = ["--out", str(tmp_path), "--planner", missing, "--solver", "embedded/solver"]
    assert study.main(options) == 2
    found = capfd.readouterr()
    assert "none" in found.err and found.out.count("== python -m") == 1
    assert "| skill of planner | " in found.out and "skill of solver" not in found.out
    assert study.main([*options, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("== python -m") == 5


def test_a_curve_of_another_size_is_refused_before_anything_runs(tmp_path, capsys):
    report = {"settings": {"messages": 64, "batch": 16}, "rows": []}
    write_report(tmp_path / "curve" / curve.REPORT, report)
    options = ["--out", str(tmp_path), "--dry-run"]
    assert study.main([*options, "--size", "small"]) == 0
    assert "experiments.run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.main([*options, "--size", "medium"])
    assert "--size medium has {'messages': 128, 'batch': 16}" in capsys.readouterr().err
    assert study.main([*options, "--size", "medium", "--about", "hops"]) == 0
    (tmp_path / "curve" / curve.REPORT).write_text('{"rows": [')
    with pytest.raises(SystemExit):
        study.main(options)
    assert f"{curve.REPORT}: must be" in capsys.readouterr().err
    report["settings"]["messages"] = 256  # of both, with other batches
    write_report(tmp_path / "curve" / curve.REPORT, report)
    assert study.main([*options, "--size", "full"]) == 0
    with pytest.raises(SystemExit):
        study.main([*options, "--size", "gpu"])
