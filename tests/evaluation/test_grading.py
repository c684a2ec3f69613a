"""Graders of one's own data."""

import sys

import pytest

from rmas_jax.config import ConfigError, DataConfig
from rmas_jax.evaluation.grading import find_grader, grade_math, grade_relay, grade_text


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
    ],
)
def test_texts(text, gold, prediction, is_right):
    assert grade_text(text, gold) == (prediction, is_right)


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
    ],
)
def test_mathematics(text, gold, is_right):
    pytest.importorskip("math_verify", reason="needs the extra eval")
    assert grade_math(text, gold)[1] is is_right


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
    assert grade_math(text, gold) == (text, False)


def test_the_grader_is_chosen_by_the_data(monkeypatch):
    assert find_grader(DataConfig(grading="math")) is grade_relay
    assert find_grader(DataConfig(dataset="rows.jsonl")) is grade_text
    monkeypatch.setitem(sys.modules, "math_verify", None)  # not installed
    with pytest.raises(ConfigError, match=r"data\.grading=math .*rmas_jax\[eval\]"):
        find_grader(DataConfig(dataset="rows.jsonl", grading="math"))
