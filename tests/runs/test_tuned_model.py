"""The tuned answerer of a run as a checkpoint: the same logits as the agent that was measured."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from quickstart_runs import run

from rmas_jax.agents.adapters import tuned_agent
from rmas_jax.agents.agent import load_agent
from rmas_jax.cli.convert import main as convert
from rmas_jax.config import ConfigError, load_config, with_budgets
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.models import CheckpointError, load_tokenizer
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.tuned_model import run_of_adapter, save_tuned_model
from rmas_jax.runs.tuning import own_adapter
from rmas_jax.team import load_team

SETTINGS = [
    "inner.steps=0",
    "inner.warmup_steps=0",
    "inner.repeats=1",
    "outer={phases: [], log_every: 1, validation_size: 4}",
    "system.outer_start=torch_default",
    "system.chat_templates={solver: plain}",
    "tuning=[{kind: lora, learning_rate: 0.3, steps: 2, batch_size: 8, warmup_steps: 0},"
    "{kind: full, learning_rate: 0.01, steps: 2, batch_size: 8, warmup_steps: 0},"
    "{kind: soft_prompt, learning_rate: 0.01, steps: 1, batch_size: 8, warmup_steps: 0,"
    " vectors: 2}]",
    "evaluation.methods=[answerer_full]",
    "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]",
    "evaluation.gradient_batch_size=0",
]
IDS = np.array([[5, 30, 8, 100, 40, 2, 9]])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    assert run(folder, *SETTINGS) == 0
    return RunFiles(folder / "runs" / "quickstart")


def logits(agent):
    hidden, _ = agent.read(agent.embed(IDS), np.ones(IDS.shape, bool))
    return np.asarray(agent.unembed(hidden))


def measured(files, method):
    """The agent that the run has measured, from its own parts."""
    config = load_config(files.config)
    team = load_team(config.system)
    [entry] = [e for e in with_budgets(config.tuning, config.outer) if e.name == method]
    return tuned_agent(team.agents["solver"], own_adapter(files, team, entry))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["answerer_full", "answerer_lora"])
def test_it_is_the_agent_that_was_measured(finished, tmp_path, method):
    path = tmp_path / "model"
    save_tuned_model(finished.root, method, path, files={"README.md": b"a card"})
    expected = logits(measured(finished, method))
    np.testing.assert_array_equal(logits(load_agent(path)), expected)
    assert np.abs(logits(load_agent("embedded/solver")) - expected).max() > 0.1
    assert (path / "README.md").read_bytes() == b"a card"
    template = load_tokenizer(path).chat_template
    assert "User:" in template  # the run's, not the checkpoint's own
    team = load_team(load_config("quickstart", [f"system.agents.solver={path}"]).system)
    jax.tree.map(
        np.testing.assert_array_equal, team.agents["solver"].params, load_agent(path).params
    )


@pytest.mark.slow
def test_the_command_writes_it_and_refuses_what_cannot_be(finished, tmp_path, capsys):
    adapter, path = finished.adapter("answerer_full"), tmp_path / "model"
    assert run_of_adapter(adapter) == finished.root
    assert run_of_adapter(finished.trained_links) is None
    assert convert([str(adapter), str(path)]) == 0
    assert f"model {path}" in capsys.readouterr().out
    kept = json.loads((path / "config.json").read_text())
    assert convert([str(adapter), str(path)]) == BAD_INPUT
    assert "model: must not exist yet" in capsys.readouterr().err
    assert json.loads((path / "config.json").read_text()) == kept

    with pytest.raises(ConfigError, match="of kind lora or full for 'answerer_soft_prompt', got"):
        save_tuned_model(finished.root, "answerer_soft_prompt", tmp_path / "other")
    with pytest.raises(ConfigError, match="for 'answerer'"):
        save_tuned_model(finished.root, "answerer", tmp_path / "other")
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:-9])
    try:
        with pytest.raises(CheckpointError, match="put back a copy, or delete it"):
            save_tuned_model(finished.root, "answerer_full", tmp_path / "other")
    finally:
        adapter.write_bytes(whole)
    assert not (tmp_path / "other").exists()
