"""Skills of real agents: a tiny agent is tuned, too weak, and saved only on request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.real_agents import skills
from experiments.real_agents.fetch import MODELS
from experiments.real_agents.skill_card import (
    Share,
    Skill,
    card,
    licence_of,
    notices_beside,
    weight_digests,
)
from experiments.real_agents.skills import (
    MODEL,
    RECORD,
    TOO_WEAK,
    configuration,
    is_exact,
    main,
    parser,
)
from rmas_jax.agents.agent import load_agent
from rmas_jax.config import ConfigError
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.models import load_tokenizer

EMBEDDED = Path(__file__).parents[1] / "rmas_jax/assets/embedded"
SKILL = Skill(
    role="planner",
    trained="all weights",
    source="a.gguf",
    sha256={"a.gguf": "0" * 64},
    licence="free",
    chat_template="its own",
    evidence={"hops": 2, "role": "planner"},
    data_seed=42,
    seed=0,
    steps=40,
    batch_size=16,
    learning_rate=1e-4,
    schedule="linear",
    seconds=180.0,
    seconds_per_step=4.25,
    peak_gib=3.5,
    tuned=Share(490, 500),
    downloaded=Share(200, 500),
    wrong=[("Where?", "barn", "inn")],
    adapter_sha256="1" * 64,
)


def chosen(*options):
    needed = ["--role", "solver", "--model", "embedded/solver", "--out", "somewhere"]
    return configuration(parser().parse_args([*needed, *options]))


def test_the_run_is_of_the_role_alone():
    config = chosen("--steps", "7", "--evidence", "pairs=3", "crossing=codes")
    assert config.system.agents == {"solver": "embedded/solver"}
    assert (config.system.topology, config.system.prompts) == ("lone_solver", "evidence_skill")
    dials = config.data.evidence
    assert (dials.role, dials.pairs, dials.crossing) == ("solver", 3, "codes")
    [entry] = config.tuning
    assert (entry.kind, entry.steps, entry.batch_size) == ("lora", 7, 16)
    assert config.evaluation.benchmarks[0].splits == ("validation",)
    assert config.runtime.dtype == "float32"
    assert config.system.chat_templates is None


def test_a_planner_that_sends_all_has_another_prompt_and_longer_texts():
    blind = chosen("--role", "planner", "--evidence", "asked=false", "pairs=8")
    assert blind.system.prompts == "evidence_blind_skill"
    tokens = blind.evaluation.sampling.max_new_tokens
    assert tokens == 96 > chosen("--role", "planner").evaluation.sampling.max_new_tokens
    solver = chosen("--evidence", "asked=false", "pairs=8")
    assert solver.evaluation.sampling.max_new_tokens < tokens


def test_a_base_model_gets_the_plain_template(tmp_path):
    for file in (EMBEDDED / "solver").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert chosen("--model", str(tmp_path)).system.chat_templates == {"solver": "plain"}


def test_the_role_is_named_once():
    with pytest.raises(ConfigError, match="--evidence must not name role"):
        chosen("--evidence", "role=planner")
    with pytest.raises(ConfigError, match="pairs must be"):
        chosen("--evidence", "pairs=1")


@pytest.mark.parametrize(
    "field",
    [
        "tuning=[]",
        "evaluation.methods=[single_agents]",
        "evaluation.methods=null",
        "tuning.0.kind=full",
    ],
)
def test_what_the_card_needs_must_stay(field):
    """Said before anything is tuned."""
    with pytest.raises(ConfigError, match=r"--set must leave the agent of .*, one tuning .lora."):
        chosen("--set", field)


def test_exact_is_exact():
    pairs = [(" barn\n", "barn"), ("Barn", "barn"), ("the barn", "barn"), ("", "barn")]
    assert [is_exact({"text": a, "gold": b}) for a, b in pairs] == [True, False, False, False]


def test_a_card_tells_the_source_the_numbers_and_what_is_wrong():
    text = card(SKILL, ["LICENSE"])
    for part in (
        "a.gguf",
        "0" * 64,
        "98.0 % [96.4, 98.9], 490 of 500",
        "40.0 %",
        "40 steps of 16 rows",
        "4.25 s a step",
        "3.5 GiB",
        "[LICENSE](LICENSE)",
        "modified version",
        "| what was changed | all weights, in float32",
        "'barn', wanted 'inn'",
        "It does its part",
    ):
        assert part in text, part
    assert "too weak" not in text
    weak = Skill(**{**vars(SKILL), "tuned": Share(474, 500)})
    assert not weak.passes and "**It is too weak**" in card(weak, [])
    assert Skill(**{**vars(SKILL), "tuned": Share(475, 500)}).passes
    known = SKILL.as_json()
    assert known["tuned"] == {"exact": 490, "n": 500, "share": 0.98, "interval": [0.9636, 0.9891]}
    assert known["passes"] is True and json.loads(json.dumps(known))["role"] == "planner"


def test_licences_travel(tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    assert notices_beside(model) == {}
    assert licence_of(weight_digests(model), []) == "not known: no notice lies beside it"
    for name in ("LICENSE", "GEMMA_TERMS.html", "NOTICE.md", "other.md"):
        (tmp_path / name).write_text(name)
    found = notices_beside(model)
    assert [*found] == ["GEMMA_TERMS.html", "LICENSE", "NOTICE.md"]
    assert found["LICENSE"] == b"LICENSE"
    assert licence_of(weight_digests(model), [*found]).startswith("see GEMMA_TERMS.html, LICENSE")
    assert licence_of({"x": MODELS["gemma3"].sha256}, []) == MODELS["gemma3"].licence


@pytest.mark.slow
def test_a_weak_agent_is_saved_only_on_request(tmp_path, capsys):
    out = tmp_path / "skill"
    options = ["--role", "planner", "--model", "embedded/planner", "--out", str(out)]
    options += ["--steps", "3", "--batch", "4", "--learning-rate", "1e-3"]
    options += ["--evidence", "train=16", "validation=8", "pairs=2"]
    options += ["--set", "tuning.0.warmup_steps=0", "--set", "outer.validation_size=4"]
    options += ["--set", "outer.log_every=1", "--set", "runtime.progress=false"]
    options += ["--set", "runtime.compilation_cache=false"]
    assert main(options) == TOO_WEAK
    said = capsys.readouterr()
    assert "0.0 % [0.0, 32.4], 0 of 8 exact on validation" in said.out
    assert "too weak" in said.err and not (out / MODEL).exists()

    assert main([*options, "--allow-weak"]) == 0
    assert "too weak" in capsys.readouterr().err
    agent, start = load_agent(out / MODEL), load_agent("embedded/planner")
    weight = "layers", "attention", "q_kernel"
    saved, before = (np.asarray(a.params[weight[0]][weight[1]][weight[2]]) for a in (agent, start))
    assert saved.shape == before.shape and np.abs(saved - before).max() > 1e-4
    assert load_tokenizer(out / MODEL).chat_template
    readme = (out / MODEL / "README.md").read_text()
    assert "**It is too weak**" in readme and "3 steps of 4 rows" in readme
    known = json.loads((out / MODEL / RECORD).read_text())
    assert known["tuned"]["n"] == known["downloaded"]["n"] == 8 and not known["passes"]
    assert known["sha256"] == {}  # of a shipped agent, which is no local path

    kept = (out / MODEL / RECORD).stat().st_mtime_ns
    assert main([*options, "--allow-weak"]) == 0  # all is there
    assert (out / MODEL / RECORD).stat().st_mtime_ns == kept
    (out / MODEL / RECORD).write_text("{}")
    capsys.readouterr()
    assert main([*options, "--allow-weak"]) == BAD_INPUT
    assert "model: must not exist yet" in capsys.readouterr().err
    assert main([*options, "--seed", "5"]) == BAD_INPUT
    assert "holds another run's results" in capsys.readouterr().err


def test_an_agent_that_does_its_part_is_saved(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(skills, "run", lambda config: None)
    monkeypatch.setattr(skills, "skill_of", lambda finished: SKILL)
    monkeypatch.setattr(skills, "save", lambda skill, finished, path: saved.append(path))
    options = ["--role", "planner", "--model", "embedded/planner", "--out", str(tmp_path)]
    assert main(options) == 0 and saved == [tmp_path / MODEL]
