"""Graders of one's own data."""

import logging
import sys

import pytest

from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation.graders import GRADERS, check_golds, default_grader, find_grader
from rmas_jax.evaluation.graders.mathematics import grade_math
from rmas_jax.evaluation.graders.relay import grade_relay
from rmas_jax.evaluation.graders.text import grade_text
from rmas_jax.evaluation.graders.verdict import Outcome, compared

SOLUTION = "She sold 48/2 = <<48/2=24>>24 in May.\nThat makes 48+24 = <<48+24=72>>72.\n#### 72"


def answered(gold):
    """An example with this gold answer."""
    return Example("0", "?", gold)


@pytest.mark.parametrize(
    ("text", "gold", "prediction", "is_right"),
    [
        ("Paris", "paris", "Paris", True),
        (" New\n york ", "New  York", "New york", True),
        ("It is Paris", "Paris", "It is Paris", False),
        (r"So it is \boxed{42}.", "42", "42", True),
        (r"\boxed{41}, no: \boxed{ 42 }", r"the answer is \boxed{42}", "42", True),
        (r"\boxed{42}, no: \boxed{41}", "42", "41", False),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", r"\frac{1}{2}", True),
        (r"\boxed{7} and \boxed{cut off", "7", "7", True),
        (r"\boxed{}", "7", None, False),
        ("", "7", None, False),
        ("1.0", "1", "1.0", False),
        (r"<think>\boxed{41}</think>It is \boxed{42}", "42", "42", True),
        (r"\boxed{41}</think>\boxed{42}", "42", "42", True),  # the template opened the block
        (r"<think>\boxed{42}</think>", "42", None, False),
        (r"<think>so it is \boxed{42}", "42", None, False),
        (r"\boxed{42} <think> or", "42", None, False),
        ("<think>no</think>\n\nParis", "Paris", "Paris", True),
        (r"\boxed{72}", "#### 72", "72", True),
        (r"\boxed{72}", SOLUTION, "72", True),
        (SOLUTION, "72", "72", True),
        (r"\boxed{1234}", "#### 1,234", "1234", True),
        (r"\boxed{\$1,234}", "#### 1234", r"\$1,234", True),
        (r"\boxed{1{,}234.00}", "#### 1,234", "1{,}234.00", True),
        (r"\boxed{12,34}", "#### 1234", "12,34", False),
        (r"\boxed{73}", SOLUTION, "73", False),
        (r"\boxed{24}", SOLUTION, "24", False),
        (r"\boxed{72}", r"So it is 24 + 48 = \boxed{72}.", "72", True),
        ("72", "1. #### First\n72", "72", False),  # a heading is no last line
        (r"\boxed{-3}", "#### -3", "-3", True),
    ],
)
def test_texts(text, gold, prediction, is_right):
    assert grade_text(text, answered(gold)) == compared(prediction, is_right)


@pytest.mark.parametrize(
    ("text", "gold", "is_right"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{2x + 1}", "1 + 2x", True),
        ("12", "12", True),
        ("1.2", "1.8", False),
        (r"\boxed{1/2}", r"\boxed{4/5}", False),
        (r"\boxed{12}", "12 apples", True),
        (r"\boxed{12 -> 13}", "13", False),
        (r"\boxed{7.}", "7", True),
        ("$0.5$", "1/2", True),
        (r"\(\frac{1}{2}\)", "0.5", True),
        ("1,000", "1000", True),
        ("", "7", False),
        (r"\boxed{72}", SOLUTION, True),
        (r"\boxed{72.0}", "#### 72", True),
        (r"\boxed{24}", SOLUTION, False),
        (r"<think>\boxed{7}</think>", "7", False),
    ],
)
def test_mathematics(text, gold, is_right):
    pytest.importorskip("math_verify", reason="needs the extra eval")
    assert grade_math(text, answered(gold)).correct is is_right


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is not 7", "7"),
        ("I do not know; maybe 12 or 13.", "13"),
        ("The answer is 0.5.", "1/2"),
        (r"it is \frac{1}{2}", "0.5"),
        (r"\text{not } 7", "7"),
        ("12 -> 13", "13"),
        ("12. 13.", "13"),
        ("12 $13$", "13"),
        ("? 13", "13"),
    ],
)
def test_without_a_box_prose_is_not_searched_for_a_number(text, gold):
    pytest.importorskip("math_verify", reason="needs the extra eval")
    verdict = grade_math(text, answered(gold))
    assert (verdict.prediction, verdict.outcome) == (text, Outcome.UNPARSED)


def test_the_grader_is_chosen_by_the_data():
    assert default_grader("relay", None) == "relay"
    for task_type, name in ((None, "text"), ("math", "text"), ("choice", "choice")):
        assert default_grader("rows.jsonl", task_type) == name


def test_a_grader_is_in_the_table_and_can_be_used(monkeypatch):
    for name, grader in GRADERS.items():
        assert grader.name == name and grader.compares and grader.gold
    assert find_grader("text", where="data.grader") is GRADERS["text"]
    with pytest.raises(
        ConfigError, match=r"data\.grader must be one of relay, text.*, got 'texts'"
    ):
        find_grader("texts", where="data.grader")
    monkeypatch.setitem(sys.modules, "math_verify", None)  # not installed
    with pytest.raises(ConfigError, match=r"data\.grader=math .*rmas_jax\[eval\]"):
        find_grader("math", where="data.grader")


def test_the_phrase_of_the_embedded_task_stands_behind_its_thinking():
    answer = "Kenal Bison, no gates left"
    example = answered(answer)
    assert grade_relay(f"<think>Bada Kor, no gates left</think>{answer}", example).correct
    assert grade_relay(f"<think>{answer}", example) == compared(None, False)


def test_gold_answers_that_cannot_be_read_are_said_with_the_first(caplog):
    items = [Example(str(i), "?", gold) for i, gold in enumerate(("B", "2", "(C) x", "Paris"))]
    with caplog.at_level(logging.WARNING):
        check_golds(GRADERS["choice"], {"test": items})
    (message,) = caplog.messages
    assert message.startswith("test: gold answers must be one letter: B, (B), B: Paris, ")
    assert "got 2 others of 4, the first '2' in the row '1' (grader choice)" in message
    with pytest.raises(ConfigError, match=r"dev: gold answers must be one letter.* 2 others of 2"):
        check_golds(GRADERS["choice"], {"test": items[:1], "dev": items[1::2]})
    caplog.clear()
    check_golds(GRADERS["text"], {"test": [*items, Example("4", "?", SOLUTION)]})
    assert not caplog.messages
    with pytest.raises(ConfigError, match=r"test: gold answers .* 1 others of 1.*\(grader text\)"):
        check_golds(GRADERS["text"], {"test": [Example("0", "?", "<think>without an end")]})
    with pytest.raises(ConfigError, match="two words, and how many gates are left"):
        check_golds(GRADERS["relay"], {"test": items})


def test_relay_is_graded_by_the_phrase():
    relay = GRADERS["relay"]
    example = Example("1", "?", "Bada Kor, no gates left")
    assert relay(" Bada Kor, two gates left", example) == compared("Bada Kor", True)
    assert relay("Luka Kor, no gates left", example) == compared("Luka Kor", False)
    assert relay("it ends there", example) == compared(None, False)
    no_answer = Example("1", "?", "nor is this an answer")
    assert relay("it ends there", no_answer) == compared(None, False)
