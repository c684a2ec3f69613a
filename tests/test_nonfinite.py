"""Agents whose numbers are NaN or infinite: every command ends in one message that names them.

The weights of the broken agents on disk are finite: what overflows is a hidden state.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from teams import with_agents

from rmas_jax.cli import ask, run
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT, DIVERGED
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.interop.link_files import save_links
from rmas_jax.team import load_team, start_links

ROOT = Path(__file__).parent.parent
CONFIG = "quickstart"
AGENTS = Path("rmas_jax/assets/embedded")
QUESTION = "After two gates, red, green and blue in turn, what has become of the phrase Amor Roma?"
SMALL = [
    "system.latent_steps=1",
    "system.rounds=2",
    "inner.items=4",
    "inner.steps=2",
    "inner.repeats=1",
    "inner.warmup_steps=0",
    "outer.phases.0.rounds=1",
    "outer.phases.0.steps=1",
    "outer.phases.0.batch_size=2",
    "outer.phases.0.warmup_steps=0",
    "outer.phases.0.role_text_weight=0",
    "outer.validation_size=2",
    "data.train_size=4",
    "evaluation.benchmarks=[{name: data, splits: ['test[:3]']}]",
    "evaluation.batch_size=2",
    "evaluation.rounds=[2]",
    "evaluation.methods=[recursive_mas]",
    "evaluation.sampling.max_new_tokens=2",
    "evaluation.gradient_batch_size=0",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]
GIVEN_LINKS = ["inner.steps=0", "system.links={links}"]
EVALUATION = [*GIVEN_LINKS, "outer.phases=[]"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    team = load_team(load_config(CONFIG, SMALL).system)
    path = tmp_path_factory.mktemp("links") / "links.safetensors"
    save_links(path, start_links(team, start="identity", key=jax.random.key(0)))
    return str(path)


def overflowing(tmp_path, role):
    """An override that gives a role an agent some of whose weights float32 can just hold."""
    folder = tmp_path / "broken"
    shutil.copytree(AGENTS / role, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return f"system.agents.{role}={folder}"


def ended(capsys, main, arguments, code):
    """The message of a command that ends with this code."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1 and "Traceback" not in err and len(messages[0]) < 2000
    assert "NaN" not in out
    return messages[0]


def settings(*overrides):
    return [part for override in overrides for part in ("--set", override)]


def run_arguments(tmp_path, links, broken, changes):
    changes = [change.format(links=links) for change in changes]
    output = f"output_dir={tmp_path / 'runs'}"
    return ["--config", CONFIG, *settings(output, *SMALL, *changes, broken)]


@pytest.mark.parametrize(
    ("role", "channel", "rounds", "stage"),
    [
        ("critic", "latent", 2, "agent critic, round 1: latents"),
        ("solver", "latent", 2, "agent solver, round 1: latents"),
        ("solver", "latent", 1, "agent solver, answer: logits"),
        ("critic", "text", 1, "agent critic, round 1: message: logits"),
    ],
)
def test_a_question_is_not_answered(tmp_path, capsys, links, role, channel, rounds, stage):
    how = ["--channel", channel, "--rounds", str(rounds), "--max-tokens", "4"]
    how += ["--links", links] if channel == "latent" else []
    output, record = f"output_dir={tmp_path}", tmp_path / "accounts.jsonl"
    chosen = settings("system.latent_steps=1", output, overflowing(tmp_path, role))
    arguments = ["--config", CONFIG, *chosen, *how, "--json", str(record), QUESTION]
    message = ended(capsys, ask.main, arguments, BAD_INPUT)
    assert stage in message and f"system.agents.{role}" in message
    assert not record.exists()


def test_the_inner_loop_stops_before_links_are_written(tmp_path, capsys, links):
    broken = overflowing(tmp_path, "critic")
    message = ended(capsys, run.main, run_arguments(tmp_path, links, broken, []), DIVERGED)
    assert "inner loop: agent critic, states of the role texts" in message
    assert not (tmp_path / "runs" / "quickstart" / "links").exists()


def test_the_outer_loop_stops_and_saves_nothing(tmp_path, capsys, links):
    broken = overflowing(tmp_path, "critic")
    arguments = run_arguments(tmp_path, links, broken, GIVEN_LINKS)
    message = ended(capsys, run.main, arguments, DIVERGED)
    assert "phase on_policy, step 0: loss nan" in message
    assert "first agent critic, round 1: latents, loss" in message
    assert "last good checkpoint: none yet" in message
    assert not (tmp_path / "runs" / "quickstart" / "links" / "trained.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "role", "work", "stage"),
    [
        ("recursive_mas", "critic", "recursive_mas, rounds 2", "agent critic, round 1: latents"),
        ("single_agents", "critic", "single_critic, rounds 1", "agent critic, answer: logits"),
    ],
)
def test_an_evaluation_writes_no_results(tmp_path, capsys, links, method, role, work, stage):
    changes = [*EVALUATION, f"evaluation.methods=[{method}]"]
    arguments = run_arguments(tmp_path, links, overflowing(tmp_path, role), changes)
    message = ended(capsys, run.main, arguments, BAD_INPUT)
    assert f"evaluation of {work}, relay test[:3], seed 0: agent {role}" in message
    assert stage in message
    folder = tmp_path / "runs" / "quickstart"
    measured = [row["method"] for row in json.loads((folder / "results.json").read_text())]
    assert measured == (["single_planner"] if method == "single_agents" else [])
    assert not (folder / "report.html").exists()


def test_links_are_not_aligned_to_embeddings_that_are_not_finite(tmp_path):
    system = load_config(CONFIG, SMALL).system
    team = load_team(system)
    critic, tokenizer = team.agents["critic"], team.members["critic"].tokenizer
    token = tokenizer(" red", add_special_tokens=False)["input_ids"][0]

    def start(value, text):
        embedding = critic.params["embedding"].at[token].set(value)
        broken = critic.replace(params=critic.params | {"embedding": embedding})
        changed = with_agents(team, {"critic": broken})
        texts = {role: [text] for role in team.agents}
        return start_links(changed, start="aligned", key=jax.random.key(0), texts=texts)

    with pytest.raises(NonFiniteError, match=r"agent critic, input embeddings, .*planner->critic"):
        start(np.nan, " red green")
    with pytest.raises(NonFiniteError, match=r"link planner->critic aligned to critic by least"):
        start(3e38, " red green")
    start(np.nan, " green")  # the token counts nowhere
