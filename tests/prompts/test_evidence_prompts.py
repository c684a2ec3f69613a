"""Prompts of split evidence: a team's text rounds and a role's own data render alike."""

from __future__ import annotations

import numpy as np
import pytest
from published import published

from experiments.embedded.make_tokenizers import STYLES, write_tokenizer
from experiments.real_agents.fetch import MODELS
from rmas_jax.config import DataConfig, EvidenceConfig
from rmas_jax.data.evidence import ROLES, example, skill_of
from rmas_jax.models import load_tokenizer
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.prompts import (
    FIRST,
    LATER,
    PromptError,
    check_columns,
    check_unasked,
    encode_stage,
    load_chat_template,
    load_method_prompts,
    load_prompts,
)
from rmas_jax.rounds.schedules import RECURSION, SCHEDULES, edges_of
from rmas_jax.rounds.text_channel import fill_slots
from rmas_jax.topology import load_topology

SETS = ("evidence", "evidence_blind")
PAIR = load_topology("pair")
SENDER = {"planner": "solver", "solver": "planner"}


def items(count=6, **dials):
    config = EvidenceConfig(**dials)
    return [example(config, 42, "test", i, rounds=1) for i in range(count)]


def skill_prompt(name, role):
    return load_prompts(f"{name}_skill", load_topology(f"lone_{role}").edges)[role]


def ids_of(stage, body, valid) -> list[int]:
    """The tokens of the only row without padding."""
    prefix = stage.prefix_ids[0][stage.prefix_valid[0]].tolist()
    return prefix + body[0][valid[0]].tolist()


def read_by_the_team(tokenizer, prompt, item, role, number) -> list[int]:
    """What a role reads in a round of text recursion."""
    sender, before = SENDER[role], number - (role == "planner")
    message = item.texts[sender][before] if before >= 0 else ""
    width = max(1, len(encode_plain(tokenizer, [message])[0]))
    stage = encode_stage(tokenizer, prompt, [item.inputs], slot_width=width)
    kind = LATER if number else FIRST
    return ids_of(stage, *fill_slots(tokenizer, stage, kind, {sender: [message]}))


def read_alone(tokenizer, prompt, item, role, number) -> list[int]:
    """What a lone role reads in its only round: no slot has a position."""
    inputs = skill_of(item, role, number).inputs
    stage = encode_stage(tokenizer, prompt, [inputs], slot_width=0)
    return ids_of(stage, stage.body_ids[:, FIRST], stage.body_valid[:, FIRST])


def assert_alike(tokenizer, name, rows):
    team = load_prompts(name, PAIR.edges)
    for role in ROLES:
        alone = skill_prompt(name, role)
        for item in rows:
            for number in range(len(item.texts[role])):
                read = read_by_the_team(tokenizer, team[role], item, role, number)
                assert read == read_alone(tokenizer, alone, item, role, number)
                text = tokenizer.decode(read)
                assert item.fields[f"evidence_{role}"] in text


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One tokenizer in the manner of each family, which has the words of some rows."""
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = [text for item in items() for text in item.inputs.values()]
    for seed, family in enumerate(STYLES):
        write_tokenizer(family, [*texts, "Be brief. Answer: List:"], folder / family, seed=seed)
    return {family: load_tokenizer(folder / family) for family in STYLES}


@pytest.mark.parametrize("family", STYLES)
@pytest.mark.parametrize(
    ("name", "dials"),
    [
        ("evidence", {}),
        ("evidence", {"hops": 5, "crossing": "codes"}),
        ("evidence", {"hops": 4, "crossing": "numbers"}),
        ("evidence_blind", {"asked": False}),
        ("evidence_blind", {"asked": False, "crossing": "names"}),
    ],
)
def test_a_role_reads_its_skill_as_it_reads_a_round(tokenizers, family, name, dials):
    assert_alike(tokenizers[family], name, items(**dials))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_published_tokenizers_read_both_alike_and_prompts_are_short(model, tmp_path_factory):
    path = published(model, tmp_path_factory.mktemp("published"))
    template = None if model == "smollm2" else load_chat_template("plain", option="template")
    tokenizer = load_tokenizer(path, chat_template=template)
    for crossing in ("words", "names", "numbers", "codes"):
        assert_alike(tokenizer, "evidence", items(5, hops=4, crossing=crossing))
        assert_alike(tokenizer, "evidence_blind", items(5, asked=False, crossing=crossing))
    planner = load_prompts("evidence", PAIR.edges)["planner"]
    lengths = [len(read_by_the_team(tokenizer, planner, i, "planner", 0)) for i in items(200)]
    assert np.mean(lengths) < 60


@pytest.mark.parametrize("name", SETS)
def test_rows_have_all_columns_of_their_sets(name):
    asked = name == "evidence"
    config = EvidenceConfig(asked=asked)
    team = load_prompts(name, PAIR.edges)
    rows = [("row", items(1, asked=asked)[0].inputs)]
    check_columns(team, rows, source=name)
    for role in ROLES:
        skill = {role: skill_prompt(name, role)}
        check_columns(skill, [("row", skill_of(items(1)[0], role, 0).inputs)], source=name)
        check_unasked(skill, DataConfig(evidence=config), source=name)
    edges = {of: edges_of(s, PAIR) for of, s in SCHEDULES.items() if of != RECURSION}
    methods = load_method_prompts(name, edges, team, answerer="solver", task_type=None)
    for prompts in (team, *methods.values()):
        check_unasked(prompts, DataConfig(evidence=config), source=name)
        for role, prompt in prompts.items():
            assert prompt.columns == (f"evidence_{role}",)
            assert ("{question}" in prompt.later) == (asked or role == "solver")


def test_a_planner_that_is_not_to_know_the_question_must_not_read_it():
    data = DataConfig(evidence=EvidenceConfig(asked=False))
    with pytest.raises(PromptError) as error:
        check_unasked(load_prompts("evidence", PAIR.edges), data, source="mine")
    words = "mine: planner: first must not have {question} with data.evidence.asked: false, got "
    assert str(error.value).startswith(words)
    check_unasked(load_prompts("evidence", PAIR.edges), DataConfig(), source="mine")
    sequential = load_topology("sequential").edges
    check_unasked({"critic": load_prompts("relay", sequential)["critic"]}, data, source="mine")
