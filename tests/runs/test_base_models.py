"""A base model, without a chat template, as an agent of a team."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from rmas_jax.cli.run import main
from rmas_jax.config import ConfigError, dump_config, load_config
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.models import CheckpointError
from rmas_jax.prompts import PromptError
from rmas_jax.runs.identity import contents
from rmas_jax.team import load_team, start_links
from rmas_jax.team_texts import load_team_texts

CONFIG = "quickstart"
SOLVER = Path(__file__).parents[2] / "rmas_jax/assets/embedded/solver"
QUESTION = "After two gates, red, green and blue in turn, what has become of the phrase Amor Roma?"


@pytest.fixture
def base(tmp_path):
    """The embedded solver without its chat template."""
    folder = shutil.copytree(SOLVER, tmp_path / "base")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["chat_template"]
    file.write_text(json.dumps(settings))
    return folder


def system(base, *overrides):
    return load_config(CONFIG, [f"system.agents.solver={base}", *overrides])


def read(texts, role, text):
    """Ids of a role's prompt, by its tokenizer and template."""
    from rmas_jax.prompts import encode_stage

    stage = encode_stage(texts.tokenizers[role], texts.templates[role], [text], slot_width=0)
    return stage.prefix_ids[0].tolist() + stage.body_ids[0, 0].tolist()


def test_without_a_template_the_role_the_checkpoint_and_the_option_are_named(base):
    with pytest.raises(CheckpointError) as error:
        load_team_texts(system(base).system)
    for words in (f"system.agents.solver={base}", "system.chat_templates.solver", "plain"):
        assert words in str(error.value)


def test_a_named_template_is_of_its_role_alone(base):
    named = load_team_texts(system(base, "system.chat_templates={solver: plain}").system)
    own = load_team_texts(load_config(CONFIG).system)
    for role in ("planner", "critic"):
        assert read(named, role, QUESTION) == read(own, role, QUESTION)
        assert role not in named.stop_strings
    text = named.tokenizers["solver"].decode(read(named, "solver", QUESTION))
    assert text.startswith("<bos>") and text.endswith("\n\nAssistant:\n") and "User:\n" in text
    assert named.stop_strings == {"solver": ("\nUser:",)}
    assert read(own, "solver", QUESTION) != read(named, "solver", QUESTION)  # the control


def test_a_template_replaces_the_checkpoints_own():
    chosen = load_config(CONFIG, ["system.chat_templates={solver: plain, critic: plain}"])
    texts = load_team_texts(chosen.system)
    assert set(texts.stop_strings) == {"solver", "critic"}
    assert "User:" in texts.tokenizers["critic"].decode(read(texts, "critic", QUESTION))


def test_a_base_model_answers_in_a_team(base):
    config = system(base, "system.chat_templates={solver: plain}").system
    team = load_team(config)
    assert team.members["solver"].stop_strings == ("\nUser:",)
    assert team.members["planner"].stop_strings == ()
    links = start_links(team, start="aligned", key=jax.random.key(0))
    answerer = Answerer(team, links, answering=Answering(max_tokens=6), rounds=1)
    [answer] = answerer([QUESTION])
    assert 0 < answer.tokens <= 6


def test_a_changed_template_is_a_changed_run(base, tmp_path):
    file = tmp_path / "mine.jinja"

    def digests(text):
        file.write_text(text)
        config = system(base, f"system.chat_templates={{solver: {file}}}")
        return contents(config, load_team_texts(config.system))

    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    before, after = digests(text), digests(text.replace(": ", " - "))
    assert [name for name in before if before[name] != after[name]] == ["chat_templates"]
    assert digests(text) == before  # the control
    assert (
        contents(load_config(CONFIG), load_team_texts(load_config(CONFIG).system))["chat_templates"]
        == {}
    )


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (
            "{solvr: plain}",
            ConfigError,
            "chat_templates.solvr must be of a role of agents, planner",
        ),
        ("{solver: 3}", ConfigError, "system.chat_templates"),
        ("plain", ConfigError, "system.chat_templates must be a mapping of names to text or null"),
        ("{solver: plane}", PromptError, "system.chat_templates.solver must be a path to a jinja"),
        ("{solver: no/such.jinja}", PromptError, "or one of plain, got '/"),
    ],
)
def test_what_cannot_be_used_is_named(base, value, error, words):
    with pytest.raises(error) as raised:
        load_team_texts(system(base, f"system.chat_templates={value}").system)
    assert words in str(raised.value)


@pytest.mark.slow
def test_a_whole_run_with_a_base_model(base, tmp_path):
    config = system(base, "system.chat_templates={solver: plain}")
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(dataclasses.replace(config, output_dir=str(tmp_path / "runs"))))
    tiny = [
        "data.train_size=16",
        "inner.items=8",
        "inner.steps=2",
        "inner.warmup_steps=0",
        "inner.repeats=1",
        "outer.validation_size=4",
        "outer.phases.0.steps=1",
        "outer.phases.0.batch_size=2",
        "outer.phases.0.warmup_steps=0",
        "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]",
        "evaluation.rounds=[1]",
        "evaluation.methods=[recursive_mas, recursive_text]",
        "evaluation.gradient_batch_size=0",
        "evaluation.batch_size=4",
        "runtime.progress=false",
        "runtime.compilation_cache=false",
    ]
    arguments = [part for item in tiny for part in ("--set", item)]
    assert main(["--config", str(file), *arguments]) == 0
    lines = (tmp_path / "runs" / config.name / "items.jsonl").read_text().splitlines()
    assert len(lines) == 8
