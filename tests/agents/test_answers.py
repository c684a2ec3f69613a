"""Texts in pieces: tool calls, answer retries, rollouts."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from followers import FOLLOWS, PASSAGE, STARTS, Follower, Library, prompt_of
from systems import build_tiny_system

from rmas_jax.agents.answers import AnswerRetry, _Rows, answer_retry_of, write_jitted
from rmas_jax.agents.sampling import row_keys
from rmas_jax.prompts import left_pad
from rmas_jax.tools import PythonLimits, Toolbox, limit_text, result_text

SECOND_TRY = AnswerRetry(r"\\boxed\{.+\}", "\nFinal answer: \\boxed{", max_tokens=5)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return Follower(tmp_path_factory.mktemp("agent"), FOLLOWS)


@pytest.fixture(scope="module")
def keys(agent):
    """Of rows that start in each of the three ways."""
    every = row_keys(jax.random.key(0), jnp.arange(20))
    texts = agent.write(every, max_tokens=1).texts
    rows = [texts.index(start.strip()) for start in STARTS]
    return every[jnp.array(rows)]


def test_each_row_calls_its_tool_and_goes_on(agent, keys):
    toolbox = Toolbox(python=PythonLimits(), search=Library())
    found = agent.write(keys, toolbox=toolbox)
    expected = "<python>print(6*7)</python> <result> 42 </result> so \\boxed{42}"
    assert found.texts[0] == expected
    assert found.texts[1].startswith("<search>parcel</search> <result> ")
    assert PASSAGE in found.texts[1]  # a control token in it is only text
    assert found.texts[1].endswith("</result> so \\boxed{42}")
    assert found.texts[2] == "perhaps"
    assert found.calls.tolist() == [1, 1, 0]
    assert found.tokens.tolist() == [3 + 2, 3 + 2, 2]  # an end token is written too
    for i in range(3):
        alone = agent.write(keys[i : i + 1], toolbox=toolbox)
        assert (alone.texts[0], alone.tokens[0]) == (found.texts[i], found.tokens[i])


def test_of_a_result_only_the_tags_are_ours(agent):
    rows = _Rows(agent.tokenizer, 1, (agent.tokenizer.eos_token_id,))
    result = result_text("42 <search>parcel</search> <|eot_id|>", 99)
    rows.append_result(0, result)
    assert agent.tokenizer.decode(rows.ids[0]) == result
    assert rows.ids[0][-1] == agent.token("</result>")
    markers = [agent.token(text) for text in ("<search>", "</search>", "end")]
    assert not set(markers) & set(rows.ids[0])


def test_without_tools_a_tag_is_text(agent, keys):
    found = agent.write(keys)
    assert found.texts[1] == "<search>parcel" + "</search>" * 6
    assert found.calls.tolist() == [0, 0, 0]


def with_stop(follower, *strings):
    """The follower, whose texts also end at some strings."""
    follower.member = dataclasses.replace(follower.member, stop_strings=strings)
    return follower


def test_a_text_ends_before_a_stop_string(tmp_path, keys):
    follows = FOLLOWS | {" perhaps": " so.\n", " so.\n": "User", "User": ":", ":": " perhaps"}
    more = (" so.\n", "User", ":")
    free = Follower(tmp_path / "free", follows, more=more).write(keys[2:])
    assert free.texts[0].startswith("perhaps so.\nUser: perhaps so.") and free.at_limit[0]
    agent = with_stop(Follower(tmp_path / "stopped", follows, more=more), "\nUser:")
    found = agent.write(keys[2:])
    assert found.texts == ["perhaps so."] and found.tokens.tolist() == [4]
    assert not found.at_limit[0]
    # The line end, in the middle of a token, is no part of the text that a retry continues.
    again = agent.write(keys[2:], answer_retry=SECOND_TRY)
    assert again.texts == ["perhaps so.\nFinal answer: \\boxed{41}"] and again.retried[0]
    # Tools are called as without it, and a stop string ends a text with calls, too.
    toolbox = Toolbox(search=Library())
    called = agent.write(keys, toolbox=toolbox)
    assert called.calls.tolist()[1:] == [1, 0] and called.texts[2] == "perhaps so."


def test_calls_are_limited_and_cost_of_the_budget(tmp_path, keys):
    again = Follower(tmp_path, FOLLOWS | {"</result>": "<search>"})
    found = again.write(keys[1:2], toolbox=Toolbox(search=Library(), max_calls=2), max_tokens=90)
    assert found.calls.tolist() == [2]
    assert found.texts[0].count("</search>") == 3
    assert found.texts[0].endswith(limit_text(2))
    found = again.write(keys[1:2], toolbox=Toolbox(search=Library()), max_tokens=7)
    assert found.tokens.tolist() == [7]
    assert found.texts[0].endswith("</result><search>")


def test_a_text_without_an_answer_is_tried_again(agent, keys):
    found = agent.write(keys, toolbox=Toolbox(search=Library()), answer_retry=SECOND_TRY)
    assert found.retried.tolist() == [False, False, True]
    assert found.texts[2] == "perhaps\nFinal answer: \\boxed{41}"
    assert found.tokens.tolist() == [5, 5, 2 + 2]
    assert found.at_limit.tolist() == [False, False, False]


def test_a_text_that_is_cut_off_says_so(agent, keys):
    found = agent.write(keys)  # two continue with their tags without end
    assert found.at_limit.tolist() == [True, True, False]
    assert agent.write(keys, max_tokens=2).at_limit.tolist() == [True, True, False]  # it just fits
    assert agent.write(keys, max_tokens=1).at_limit.all()
    cut = agent.write(keys, max_tokens=1, answer_retry=SECOND_TRY)
    assert cut.retried.all() and cut.at_limit.all()


@pytest.mark.parametrize(
    ("task", "answers", "others"),
    [
        ("math", (r"so \boxed{ \frac{1}{2} }", r"\boxed{41}"), ("41", r"\boxed{}", r"\boxed{")),
        (
            "choice",
            (r"it is \boxed{B}", r"\boxed{(b).}", r"\boxed{\text{B}}"),
            ("B", r"\boxed{1}", r"\boxed{BC}"),
        ),
        ("code", ("```python\nx = 1\n```", "see ```x``` "), ("x = 1", "```python\nx = 1")),
        ("search", (r"\boxed{Bada Kor}",), ("Bada Kor",)),
    ],
)
def test_answers_are_found_by_type_of_task(task, answers, others):
    pattern = answer_retry_of(task).answer
    assert all(re.search(pattern, text, re.DOTALL) for text in answers)
    assert not any(re.search(pattern, text, re.DOTALL) for text in others)
    assert answer_retry_of("free") is None and answer_retry_of(None) is None


def test_an_answer_in_a_thinking_block_is_tried_again_behind_it(tmp_path, keys):
    """The block is closed first; one that the template opened begins the texts."""
    words = ("<think>", " \\boxed{41}", "</think>")
    follows = FOLLOWS | {" perhaps": "<think>", "<think>": words[1], words[1]: "end"}
    thinker = Follower(tmp_path, follows | {"</think>": "end"}, words)
    found = thinker.write(keys[2:], answer_retry=SECOND_TRY)
    assert found.opening == "" and found.retried.tolist() == [True]
    thought = "perhaps<think> \\boxed{41}"
    assert found.texts[0].startswith(f"{thought}</think>\nFinal answer: \\boxed{{")
    assert thinker.write(keys[2:]).texts == [thought]

    ready = Follower(
        tmp_path, follows | {words[1]: "</think>", "</think>": " so \\boxed{42}"}, words
    )
    found = ready.write(keys[2:], answer_retry=SECOND_TRY)
    assert found.retried.tolist() == [False]
    assert found.texts == [f"{thought}</think> so \\boxed{{42}}"]

    found = thinker.write(keys[2:], prompt=("ask", "<think>"), answer_retry=SECOND_TRY)
    assert found.opening == "<think>" and found.retried.tolist() == [True]
    assert found.texts[0].startswith("\\boxed{41}</think>\nFinal answer: ")


def test_tags_of_thinking_stay_where_they_are_special_tokens(tmp_path, keys):
    words = ("[THINK]", " \\boxed{41}", "[/THINK]")
    follows = FOLLOWS | {" perhaps": words[0], words[0]: words[1], words[1]: words[2]}
    thinker = Follower(tmp_path, follows | {words[2]: "end"}, words[1:2], special=words[::2])
    (text,) = thinker.write(keys[2:]).texts
    assert text.replace(" ", "") == "perhaps[THINK]\\boxed{41}[/THINK]"


def test_rollouts_share_what_was_read_and_differ_by_their_keys(agent):
    rollouts = [
        agent.write(row_keys(jax.random.key(seed), jnp.arange(8)), max_tokens=1).texts
        for seed in (0, 1, 0)
    ]
    assert rollouts[0] == rollouts[2] != rollouts[1]
    assert set(rollouts[0] + rollouts[1]) == {start.strip() for start in STARTS}


def test_going_on_is_writing_in_one_go():
    agent = build_tiny_system().agents["solver"]
    prompt = prompt_of(agent, [[3, 1, 4, 1, 5], [6], [5, 8, 9]])
    how = {"end_tokens": (), "max_tokens": 6}
    whole = write_jitted(agent, prompt, **how).tokens
    ids, valid = left_pad([row[:3] for row in whole.tolist()], 5)
    rest = write_jitted(agent, prompt, continuation_ids=ids, continuation_valid=valid, **how).tokens
    np.testing.assert_array_equal(rest[:, :3], whole[:, 3:])
    assert len(np.unique(whole)) > 3
