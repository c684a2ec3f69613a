"""Input that the main job refuses: one message, before any training."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from quickstart_runs import refused, run

from rmas_jax.cli.run import main
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.training.states import cache as state_cache

ROOT = Path(__file__).parents[2]
AGENT = Path("rmas_jax/assets/embedded/planner")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def agent(tmp_path):
    """A copy of an agent to damage, and the override that uses it."""
    copy = tmp_path / "agent"
    shutil.copytree(AGENT, copy)
    return copy, f"system.agents.planner={copy}"


def test_a_key_that_does_not_exist(tmp_path, capsys):
    assert "system.latent_step" in refused(tmp_path, capsys, "system.latent_step=4")


def test_a_value_of_the_wrong_type(tmp_path, capsys):
    message = refused(tmp_path, capsys, "system.latent_steps=four")
    assert "system.latent_steps" in message and "four" in message


def test_a_configuration_file_that_is_not_there(capsys):
    assert main(["--config", "nowhere.yaml"]) == BAD_INPUT
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_model_directory_that_is_not_there(tmp_path, capsys):
    message = refused(tmp_path, capsys, f"system.agents.planner={tmp_path}/nobody")
    assert f"{tmp_path}/nobody" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["output_dir=/dev/null/runs"], "output_dir=/dev/null/runs: cannot be made"),
        (
            ["system.latent_steps=16", "outer.phases.0.latents=teacher_forced"],
            "16 with texts of fewer than 16 tokens left out",
        ),
    ],
)
def test_what_training_could_not_do_is_found_before_it(tmp_path, capsys, overrides, words):
    assert words in refused(tmp_path, capsys, *overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("outer.phases.0.batch_size=17", "there are 16 items to train on"),
        ("evaluation.batch_size=1", "shuffled_latents needs at least 2"),
    ],
)
def test_batches_that_do_not_fit_are_found_before_training(tmp_path, capsys, override, words):
    control = "evaluation.methods=[no_latents, shuffled_latents]"
    message = refused(tmp_path, capsys, override, control)
    assert override in message and words in message


def test_the_puzzles_are_no_problems_of_a_task(tmp_path, capsys):
    message = refused(tmp_path, capsys, "system.prompts=sequential", "system.task_type=math")
    assert "data.dataset=relay" in message and "system.task_type=math" in message


def test_int8_without_its_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    message = refused(tmp_path, capsys, "runtime.weights=int8")
    assert message.count("\n") == 1 and "rmas_jax[int8]" in message


def test_damaged_weights(tmp_path, capsys, agent):
    folder, override = agent
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in refused(tmp_path, capsys, override)


def test_an_unsupported_family(tmp_path, capsys, agent):
    folder, override = agent
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "rwkv"}))
    message = refused(tmp_path, capsys, override)
    assert "rwkv" in message and str(folder) in message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{{ 'x' * 10**10 }}", "exceeds the memory limit"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes one of the texts"),
        ("{% if messages | length > 5 %}{{ messages[0].content }}{% endif %}", "leaves out"),
        ("{% for m in messages %}", "Unexpected end of template"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_found_before_anything_is_made(
    tmp_path, capsys, agent, template, words
):
    directory, override = agent
    (directory / "chat_template.jinja").write_text(template)
    message = refused(tmp_path, capsys, override)
    assert str(directory) in message and words in message and len(message) < 2000
    assert not (tmp_path / "runs").exists()


def test_a_date_that_is_no_day(tmp_path, capsys):
    message = refused(tmp_path, capsys, "system.date='2026-02-30'")
    assert "system.date must be a day as YYYY-MM-DD, got 2026-02-30" in message


def test_a_slot_that_a_template_lacks(tmp_path, capsys):
    text = (ROOT / "rmas_jax/prompts/relay.yaml").read_text().replace("{planner}", "the plan")
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(text)
    message = refused(tmp_path, capsys, f"system.prompts={prompts}")
    assert "critic" in message and "planner" in message and str(prompts) in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("system.topology=ring", "topology must be a path to a YAML file or one of "),
        (
            "system.topology=mixture",
            "system.agents must have the roles of the mixture topology, math, code",
        ),
        ("system.agents.judge=d", "sequential topology, planner, critic, solver, got "),
    ],
)
def test_agents_that_are_not_those_of_the_topology(tmp_path, capsys, override, words):
    assert words in refused(tmp_path, capsys, override)


def test_rounds_without_a_way_back(tmp_path, capsys):
    path = tmp_path / "line.yaml"
    path.write_text(
        "{name: line, order: [planner, critic, solver], answerer: solver, "
        "edges: [planner -> critic, critic -> solver]}"
    )
    message = refused(tmp_path, capsys, f"system.topology={path}")
    assert "system.rounds must be 1, as the line topology" in message
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(
        'planner: {first: "{question}"}\ncritic: {first: "{question} {planner}"}\n'
        'solver: {first: "{question} {critic}"}\n'
    )
    line = (f"system.topology={path}", f"system.prompts={prompts}", "system.rounds=1")
    message = refused(tmp_path, capsys, *line)
    assert "outer.phases.0.rounds=" in message and "line" in message


def test_a_split_that_does_not_exist(tmp_path, capsys):
    message = refused(tmp_path, capsys, "evaluation.benchmarks=[{name: data, splits: [tset]}]")
    assert "evaluation.benchmarks: relay: splits" in message
    assert "'tset'" in message and "'validation'" in message


def test_a_folder_that_is_not_ours(tmp_path, capsys):
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "diary.txt").write_text("dear diary")
    assert str(folder) in refused(tmp_path, capsys)


def test_states_that_no_memory_holds_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(state_cache, "physical_memory", lambda: 1000)
    assert run(tmp_path, "inner.cache_gib=0", options=("--dry-run",)) == BAD_INPUT
    message = capsys.readouterr().err
    assert "planner: 0.00 GiB" in message and "inner.cache_gib" in message


def test_a_faulty_section_of_prompts_is_refused_before_weights_are_read(tmp_path, capsys):
    prompts = tmp_path / "mine.yaml"
    prompts.write_text(
        'planner: {first: "{question}", later: "{question} {solver}"}\n'
        'critic: {first: "{question} {planner}"}\n'
        'solver: {first: "{question} {critic}"}\n'
        'methods: {textgrad: {agents: {first: "{question}"}}}\n'
    )
    message = refused(tmp_path, capsys, f"system.prompts={prompts}")
    named = "mine.yaml: methods: textgrad: solver must have ['critic', 'planner', 'solver'], got"
    assert f"{named} '{{question}}'" in message
