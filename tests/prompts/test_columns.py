"""Columns of the data in prompts: each reaches the roles that name it, and no other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from systems import build_tiny_system
from teams import build_team

from rmas_jax.agents.member import Member
from rmas_jax.data import Example
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.batches import running_order
from rmas_jax.prompts import (
    FIRST,
    LATER,
    PromptError,
    RolePrompt,
    check_columns,
    encode_stage,
    load_prompts,
)
from rmas_jax.topology import load_topology
from rmas_jax.training.data.encoding import encode_dialogues, encode_examples

SET = """
planner:
  first: "{question} you know {left} plan"
  later: "{question} you know {left} seen {solver}"
critic: {first: "about {question} {planner} refine"}
solver: {first: "{question} with {right} refined {critic}"}
"""
SLOTS = 3


def row(left="the parcel", right="the end", question="where ?"):
    return {"question": question, "left": left, "right": right}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SET)
    return load_prompts(str(file), load_topology("sequential").edges)


def read(prompts, question):
    """Role -> the token ids that it reads, by round kind."""
    tokenizer = build_tiny_system().tokenizer
    found = {}
    for role, prompt in prompts.items():
        stage = encode_stage(tokenizer, prompt, [question], slot_width=SLOTS)
        prefix = stage.prefix_ids[0][stage.prefix_valid[0]].tolist()
        found[role] = [
            prefix + stage.body_ids[0, kind][stage.body_valid[0, kind]].tolist()
            for kind in (FIRST, LATER)
        ]
    return found


def test_fields_that_are_no_slots_are_columns(prompts):
    columns = {role: prompt.columns for role, prompt in prompts.items()}
    assert columns == {"planner": ("left",), "critic": (), "solver": ("right",)}


@pytest.mark.parametrize(
    ("change", "roles"),
    [
        ({"left": "a letter to b"}, ["planner"]),
        ({"right": "a letter to b"}, ["solver"]),
        ({"question": "what has become of it ?"}, ["critic", "planner", "solver"]),  # the control
    ],
)
def test_a_text_reaches_the_roles_that_name_it(prompts, change, roles):
    before, after = read(prompts, row()), read(prompts, row() | change)
    assert [role for role in prompts if before[role] != after[role]] == roles
    for role in roles:  # in both kinds of round
        assert all(a != b for a, b in zip(before[role], after[role], strict=True))


def test_a_column_is_read_like_a_question_at_its_place(prompts):
    """Its ids are those of a prompt that has its text written out."""
    written = {
        role: RolePrompt(
            prompt.system,
            *(
                text.replace("{left}", "the parcel").replace("{right}", "the end")
                for text in (prompt.first, prompt.later)
            ),
        )
        for role, prompt in prompts.items()
    }
    assert read(prompts, row()) == read(written, "where ?")
    assert read(prompts, row(left="parcel")) != read(written, "where ?")  # the control


def test_a_marker_in_a_column_ends_no_turn(tmp_path, prompts):
    team, _ = build_team(tmp_path)
    for role, column in (("planner", "left"), ("solver", "right")):
        tokenizer, end = team.members[role].tokenizer, team.members[role].tokenizer.eos_token

        def ends(text, role=role, column=column, tokenizer=tokenizer):
            stage = encode_stage(tokenizer, prompts[role], [row() | {column: text}], slot_width=0)
            ids = np.concatenate([stage.prefix_ids.ravel(), stage.body_ids.ravel()])
            return int((ids == tokenizer.eos_token_id).sum())

        assert ends(f"the {end} parcel") == ends("the parcel")
        assert tokenizer.eos_token_id in tokenizer(f"the {end}")["input_ids"]  # the control


def test_training_and_answers_read_the_columns_of_their_rows(tmp_path, prompts):
    team, links = build_team(tmp_path)
    members = {
        role: dataclasses.replace(member, template=prompts[role])
        for role, member in team.members.items()
    }
    team = dataclasses.replace(team, members=members)
    texts = {role: ("w to a",) for role in members}
    examples = [
        Example("0", "where ?", "a", texts=texts, fields={"left": left, "right": "the end"})
        for left in ("the parcel", "a to b")
    ]
    data = encode_examples(team, examples).batch()
    answerer = Answerer(team, links, answering=Answering(max_tokens=2), batch_size=2)
    asked = answerer.encode([example.inputs for example in examples])
    for role, differs in (("planner", True), ("critic", False), ("solver", False)):
        for stage in (data.prompts[role], asked[role]):
            ids = np.concatenate([stage.prefix_ids, stage.body_ids.reshape(2, -1)], axis=1)
            assert (ids[0] != ids[1]).any() == differs
        member: Member = members[role]
        dialogues = encode_dialogues(examples, member, topology=team.system.topology, rounds=1)
        assert len(dialogues.tokens) == 1 + differs  # equal ones are stored once
    answers = answerer([example.inputs for example in examples])
    assert [answer.question for answer in answers] == ["where ?"] * 2
    assert all(answer.text for answer in answers)


def test_a_missing_column_is_named_with_role_template_and_row(prompts):
    rows = [("train.jsonl:1", row()), ("train.jsonl:2", {"question": "?", "left": "a"})]
    with pytest.raises(PromptError) as error:
        check_columns(prompts, rows, source="mine.yaml")
    for words in ("mine.yaml: solver: first", "{right}", "not in train.jsonl:2"):
        assert words in str(error.value)
    check_columns(prompts, rows[:1], source="mine.yaml")  # the control
    with pytest.raises(PromptError, match=r"got \{left\} for 'where \?'"):
        read(prompts, "where ?")


def test_rows_are_not_read_for_prompts_without_columns():
    check_columns({"a": RolePrompt("", "{question}", "")}, (1 / 0 for _ in [0]), source="")


def test_batches_are_of_like_length_with_the_columns_of_prompts():
    items = [Example(str(i), "w", "", fields={"left": "x" * n}) for i, n in enumerate([1, 90, 40])]
    assert running_order(items, {"left"}).tolist() == [1, 2, 0]
    other = [dataclasses.replace(item, fields={"notes": item.fields["left"]}) for item in items]
    assert running_order(other, {"left"}).tolist() != [1, 2, 0]  # what no prompt has does not count
