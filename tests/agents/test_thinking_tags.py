"""Where the thinking of a text ends."""

import pytest

from rmas_jax.agents.thinking_tags import TAGS, after_thinking, missing_end, opened_by


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("42", "42"),
        ("<think>a</think>42", "42"),
        ("a</think>42", "42"),  # the template opened the block
        ("<think>a</think>b<think>c</think>42", "42"),
        ("<THINK>a</Think>42", "42"),
        ("<think>a</think>", ""),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
        ("a</think>42<think>", None),
        ("think>42", "think>42"),
    ],
)
def test_the_answer_stands_behind_the_last_block(text, after):
    assert after_thinking(text) == after
    assert (missing_end(text) == "") == (after is not None)


@pytest.mark.parametrize("opening", TAGS)
def test_blocks_have_several_spellings(opening):
    closing = TAGS[opening]
    assert after_thinking(f"{opening}a{closing}42") == "42"
    assert after_thinking(f"{opening}a") is None and missing_end(f"{opening}a") == closing


def test_a_prompt_may_open_a_block():
    assert opened_by("<|user|>?<|assistant|><think>\n") == "<think>"
    assert opened_by("<|user|>what is <think>?<|assistant|>") == ""
    assert opened_by("<|assistant|><think>\n\n</think>\n\n") == ""
    assert opened_by("") == ""
