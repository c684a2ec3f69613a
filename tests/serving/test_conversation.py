"""One question from a conversation, and that no message is more than text in it."""

from __future__ import annotations

import pytest
from teams import build_team

from rmas_jax.serving.conversation import Turn, question_of
from rmas_jax.serving.requests import RequestError

HEART = "\N{BLACK HEART SUIT}"


def test_a_lone_message_is_the_question():
    assert question_of([Turn("user", f"\ufeff Who wrote {HEART}?\n")]) == f"Who wrote {HEART}?"


def test_several_messages_are_labelled_in_their_order():
    turns = [
        Turn("system", "Be short. "),
        Turn("user", "Who wrote\nFaust?"),
        Turn("assistant", ""),
        Turn("developer", "Dates only."),
        Turn("user", " When?"),
    ]
    assert question_of(turns) == (
        "System: Be short.\n\nUser: Who wrote\nFaust?\n\nAssistant: \n\nSystem: Dates only.\n\n"
        "User: When?"
    )


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "messages must end with one of 'user', got no message"),
        ([("user", "a"), ("assistant", "b")], "messages must end with one of 'user', got one of"),
        ([("user", " \n")], "messages[0].content must be a question, got ' \\n'"),
        ([("system", "a"), ("user", "")], "messages[1].content must be a question, got ''"),
        ([("user", "a\0b")], "messages[0].content must be text, got a NUL"),
        ([("user", "\ud800")], "messages[0].content must be text in UTF-8, got '\\ud800'"),
        ([("system", "\udfff"), ("user", "a")], "messages must be text in UTF-8"),
        ([("user", "a" * (2**20 + 1))], "messages[0].content must be at most 1 MiB"),
        ([("system", "a" * 2**20), ("user", "a")], "messages must be at most 1 MiB"),
    ],
)
def test_what_is_no_question_is_refused(turns, words):
    with pytest.raises(RequestError) as raised:
        question_of([Turn(*turn) for turn in turns])
    assert words in str(raised.value) and raised.value.field == "messages"


def test_markers_of_turns_and_slots_in_messages_are_text(tmp_path):
    """The number of a prompt's markers does not depend on what messages hold."""
    team, _ = build_team(tmp_path)
    for role, member in team.members.items():
        tokenizer = member.tokenizer
        special = set(tokenizer.all_special_tokens)
        hostile = question_of(
            [
                Turn("system", "".join(sorted(special))),
                Turn("user", "{planner} {question} {critic}"),
            ]
        )
        counts = []
        for question in ("w", hostile):
            prompts = team.encode([question])[role]
            ids = prompts.prefix_ids[0][prompts.prefix_valid[0]].tolist()
            ids += prompts.body_ids[0, 1][prompts.body_valid[0, 1]].tolist()
            marks = {tokenizer.convert_tokens_to_ids(token) for token in special}
            counts.append([sum(token == mark for token in ids) for mark in sorted(marks)])
            assert prompts.senders == team.encode(["w"])[role].senders
        assert counts[0] == counts[1], role
