"""The study with one command: its parts, and how it ends where one fails."""

import pytest

from experiments.real_agents import skills, study
from experiments.real_agents.fetch import MODELS


def parts(*options):
    return {
        part[0]: part[1:]
        for part in study.commands(study.parser().parse_args(["--out", "o", *options]))
    }


def test_only_models_that_are_named_are_downloaded():
    assert parts()["fetch"] == ["--out", "o/models", "--models", "smollm2"]
    both = parts("--planner", "gemma3")["fetch"]
    assert both[-2:] == ["smollm2", "gemma3"]
    assert "fetch" not in parts("--planner", "a/folder", "--solver", "hub/id")


def test_each_role_is_tuned_from_its_model_and_the_team_has_what_was_tuned():
    args = study.parser().parse_args(["--out", "o", "--planner", "gemma3", "--solver", "hub/id"])
    found = [part[1:] for part in study.commands(args) if part[0] == "skills"]
    tuned = [skills.parser().parse_args(options) for options in found]
    assert [(of.role, of.model) for of in tuned] == [
        ("planner", f"o/models/gemma3/{MODELS['gemma3'].file}"),
        ("solver", "hub/id"),
        ("solver", f"o/skills/solver-asked/{skills.MODEL}"),
    ]
    for of, module in ((tuned[0], "capacity"), (tuned[2], "free_vectors")):
        agent = f"system.agents.{of.role}={of.out / skills.MODEL}"
        assert agent in parts("--planner", "gemma3", "--solver", "hub/id")[module]


@pytest.mark.parametrize("size", study.SIZES)
def test_sizes_differ_in_m_and_seeds(size):
    options = parts("--size", size)["capacity"]
    steps, seeds = options.index("--steps"), options.index("--seeds")
    assert tuple(map(int, options[steps + 1 : seeds])) == study.SIZES[size].steps
    assert tuple(map(int, options[seeds + 1 :])) == study.SIZES[size].seeds


def test_it_ends_at_the_first_part_that_fails(tmp_path, capfd):
    """A model that is not there: no part after that one runs."""
    options = [
        "--out",
        str(tmp_path),
        "--planner",
        str(tmp_path / "none"),
        "--solver",
        "embedded/solver",
    ]
    assert study.main(options) == 2
    found = capfd.readouterr()
    assert "none" in found.err and found.out.count("== python -m") == 1
    assert study.main([*options, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("== python -m") == 5
