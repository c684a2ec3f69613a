"""Whole runs on split evidence: a team of two, and a role alone on its own part."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from experiments.real_agents.fetch import MODELS
from rmas_jax.cli.run import main
from rmas_jax.config import ConfigError, load_config
from rmas_jax.evaluation.benchmarks import find_benchmark, find_benchmarks
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.prompts import load_prompts
from rmas_jax.topology import load_topology

CONFIGS = Path(__file__).parents[2] / "experiments/configs/real_agents"

COMMON = """
data: {dataset: split-evidence, evidence: {train: 8, validation: 4, test: 4, pairs: 2}}
evaluation:
  benchmarks: [{name: data, splits: [test]}]
  batch_size: 4
  sampling: {max_new_tokens: 3}
  gradient_batch_size: 0
runtime: {progress: false, compilation_cache: false}
"""
TEAM = """
name: team
system:
  topology: pair
  prompts: evidence
  agents: {planner: embedded/planner, solver: embedded/solver}
  latent_steps: 2
  rounds: 2
inner: {steps: 2, batch_size: 16, learning_rate: 6e-3, warmup_steps: 0, items: 8}
outer:
  validation_size: 4
  phases:
    - name: on_policy
      latents: on_policy
      rounds: 2
      steps: 1
      batch_size: 2
      learning_rate: 2e-4
      warmup_steps: 0
"""
ALONE = """
name: alone
system:
  topology: lone_planner
  prompts: evidence_skill
  agents: {planner: embedded/planner}
  latent_steps: 0
  rounds: 1
  outer_start: identity
tuning: [{kind: full, steps: 2, batch_size: 2, learning_rate: 1e-3, warmup_steps: 0}]
"""
LONGER = "{name: longer, data: {dataset: split-evidence, evidence: {hops: 4, pairs: 2, test: 3}}}"


def run(tmp_path, text, *overrides):
    file = tmp_path / "run.yaml"
    file.write_text(text + COMMON)
    settings = (f"output_dir={tmp_path / 'runs'}", *overrides)
    return main(["--config", str(file), *(part for item in settings for part in ("--set", item))])


def items_of(tmp_path, name):
    lines = (tmp_path / "runs" / name / "items.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_team_is_trained_on_two_hops_and_measured_on_four(tmp_path):
    longer = tmp_path / "longer.yaml"
    longer.write_text(LONGER)
    overrides = (
        f"evaluation.benchmarks=[{{name: data, splits: [test]}}, {{name: {longer}}}]",
        "evaluation.methods=[recursive_mas, recursive_text]",
        "evaluation.rounds=[1, 2]",
    )
    assert run(tmp_path, TEAM, *overrides) == 0
    rows = items_of(tmp_path, "team")
    counts = {name: sum(row["benchmark"] == name for row in rows) for name in ("longer",)}
    assert counts == {"longer": 3 * 4} and len(rows) == 4 * 4 + 3 * 4
    assert {row["difficulty"] for row in rows if row["benchmark"] == "longer"} == {4}
    assert all(row["gold"].isdigit() and len(row["gold"]) == 3 for row in rows)


@pytest.mark.slow
def test_a_role_is_tuned_alone_on_its_own_part(tmp_path):
    overrides = (
        "data.evidence.role=planner",
        "data.evidence.hops=4",
        "evaluation.methods=[single_agents, answerer_full]",
        "evaluation.rounds=[1]",
    )
    assert run(tmp_path, ALONE, *overrides) == 0
    rows = items_of(tmp_path, "alone")
    golds = [row["gold"].split() for row in rows]
    assert len(rows) == 2 * 4 and all(article == "the" and of.isalpha() for article, of in golds)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (
            TEAM,
            ["data.evidence.asked=false"],
            "evidence: planner: first must not have {question} with data.evidence.asked: false",
        ),
        (
            TEAM,
            ["data.evidence.role=solver"],
            "evidence: planner: first must have columns that every row has, got {evidence_planner}",
        ),
        (
            ALONE,
            ["data.evidence.role=solver"],
            "evidence_skill: planner: first must have columns that every row has, got "
            "{evidence_planner}",
        ),
    ],
)
def test_prompts_that_do_not_fit_the_evidence_are_refused(tmp_path, capsys, text, overrides, words):
    assert run(tmp_path, text, "evaluation.methods=[single_agents]", *overrides) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs" / "team").exists() and not (tmp_path / "runs" / "alone").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_name_files_that_are_there(path):
    """From any folder: files beside a configuration are named as they lie there."""
    fields = yaml.safe_load(path.read_text())
    if "system" in fields:
        config = load_config(path)
        assert find_benchmarks(config)
        edges = load_topology(config.system.topology).edges
        assert load_prompts(config.system.prompts, edges)
    elif "data" in fields:
        assert find_benchmark(str(path), where="path").data is not None
    else:
        assert "solver" in fields  # a set of prompts, which a configuration names


def test_agents_as_downloaded_are_the_same_by_file_and_by_hub_id():
    """The team of four hops, but for its agents; files and ids are of the same models."""
    files, hub, tuned = (
        load_config(CONFIGS / f"{name}.yaml")
        for name in ("as_downloaded", "as_published", "split_evidence")
    )
    system = dataclasses.replace(hub.system, agents=files.system.agents)
    assert dataclasses.replace(hub, name=files.name, system=system) == files
    assert files.data == tuned.data
    assert files.evaluation.benchmarks == tuned.evaluation.benchmarks
    for role, name in (("planner", "gemma3"), ("solver", "smollm2")):
        path, own = Path(files.system.agents[role]), hub.system.agents[role].rpartition("/")[2]
        assert path.name == MODELS[name].file and path.name.lower().startswith(own.lower())


def test_a_benchmark_that_is_not_beside_its_configuration_is_refused(tmp_path):
    text = (CONFIGS / "split_evidence.yaml").read_text()
    moved = tmp_path / "moved.yaml"
    moved.write_text(text)
    with pytest.raises(ConfigError, match=r"benchmarks\.0\.name must be one of .*two_hops\.yaml"):
        find_benchmarks(load_config(moved))
