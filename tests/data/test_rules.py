"""Rules: rows of the benchmarks' own files, as questions."""

import hashlib
import json
import random

import pytest
from benchmark_files import FILES
from hypothesis import given
from hypothesis import strategies as st

from rmas_jax.data import DataError
from rmas_jax.data.rules import RULES, called_function, find_rule, hotpotqa_context

OF_RULE = {  # a benchmark with rows in its format
    "gpqa": "GPQA-Diamond",
    "medqa": "MedQA-USMLE",
    "mbpp_plus": "MBPP+",
    "livecodebench": "LiveCodeBench-v6",
    "hotpotqa_context": "HotpotQA",
    "gsm8k": "GSM8K",
}


def rows(name):
    return [row for file in FILES[name].values() for row in file]


def made(rule, row, seed=42):
    return RULES[rule].apply(row, seed)


@pytest.mark.parametrize("seed", [42, 7])
def test_options_of_gpqa_are_shuffled_as_upstream_does(seed):
    orders = set()
    for i in range(60):
        stem = f"Question {i}?"
        row = {"Record ID": f"rec{i}", "Question": f" {stem}\n", "Correct Answer": "0"}
        row |= {f"Incorrect Answer {k}": f"{k} " for k in (1, 2, 3)}
        found = made("gpqa", row, seed)
        # The description: the first 16 digits of the MD5 of "seed::question" seed Python's Random.
        order = [0, 1, 2, 3]
        number = int(hashlib.md5(f"{seed}::{stem}".encode()).hexdigest()[:16], 16)
        random.Random(number).shuffle(order)
        lines = [f"{letter}. {k}" for letter, k in zip("ABCD", order, strict=True)]
        assert found["question"].split("\n") == [stem, *lines]
        assert lines["ABCD".index(found["answer"])].endswith(" 0")
        assert found["id"] == f"rec{i}"
        orders.add(tuple(order))
    assert len(orders) > 15  # of 24


def test_one_shuffle_by_hand():
    row = {"Record ID": "r", "Question": "Q?", "Correct Answer": "a"}
    row |= {f"Incorrect Answer {k}": text for k, text in zip((1, 2, 3), "bcd", strict=True)}
    assert hashlib.md5(b"42::Q?").hexdigest()[:16] == "9b598fa1b1b0d0c0"
    assert made("gpqa", row)["question"] == "Q?\nA. d\nB. a\nC. c\nD. b"


def test_medqa_in_both_formats():
    for row in rows("MedQA"):
        found = made("medqa", row)
        assert found["question"] == row["query"]  # has its options already
        letter = found["answer"]
        assert f"{letter}. {row['answer']}" in row["options"]
    for row in rows("MedQA-USMLE"):
        found = made("medqa", row)
        assert found["answer"] == row["answer_idx"]
        assert found["question"].endswith("?\nA. Liver\nB. Lung\nC. Skin\nD. Spleen")
    with pytest.raises(ValueError, match="answer must be a letter or text of the options"):
        made("medqa", rows("MedQA")[0] | {"answer": "Gold"})  # upstream would take A
    with pytest.raises(ValueError, match="options must be 2 to 10 texts, got None"):
        made("medqa", {"question": "Q?", "answer": "A"})


def test_mbpp_plus_shows_three_assertions_and_names_the_function():
    row = rows("MBPP+")[0]
    found = made("mbpp_plus", row)
    for i, test in enumerate(row["test_list"]):
        assert (test in found["question"]) == (i < 3)
    assert found["entry_point"] == "repeated"
    assert found["answer"] == f"```python\n{row['code']}\n```"
    assert called_function("assert math.isclose(area(3), 4.5, rel_tol=0.001)") == "area"
    assert called_function("assert  set(f((1,),(2,))) == set((3,))") == "f"
    for bad in ("assert 1 == 1", "assert f(", "assert len([]) == 0"):
        with pytest.raises(ValueError, match="must hold assertions that call a function"):
            called_function(bad)


def test_livecodebench_in_both_styles():
    for row in rows("LiveCodeBench-v6"):
        found = made("livecodebench", row)
        has_starter = bool(row["starter_code"])
        assert ("class Solution:" in found["question"]) == has_starter
        assert ("standard input" in found["question"]) != has_starter
        assert found["question"].startswith(row["question_content"])
        assert found["id"] == row["question_id"]


def test_documents_of_hotpotqa_are_numbered():
    row = rows("HotpotQA")[0]
    question = hotpotqa_context(row, 0)["question"]
    assert question == (
        "Documents:\n\n[1] Company 70\nIt was founded by Ada. It is old.\n\n[2] Ada\n"
        f"Born in Bergen.\n\n{row['question']}"
    )
    with pytest.raises(ValueError, match="context must hold lists of title and sentences"):
        hotpotqa_context({"question": "Q?", "context": []}, 0)


@pytest.mark.parametrize(
    ("answer", "number"), [("#### 72", "72"), ("a\n#### 1,234,567 ", "1234567"), ("#### -5", "-5")]
)
def test_the_answer_of_gsm8k(answer, number):
    assert made("gsm8k", {"question": "Q?", "answer": answer})["answer"] == number


@pytest.mark.parametrize("answer", ["72", "so ####", "#### \n"])
def test_an_answer_of_gsm8k_without_its_mark_is_refused(answer):
    with pytest.raises(ValueError, match="answer must end in #### and a number"):
        made("gsm8k", {"question": "Q?", "answer": answer})


@pytest.mark.parametrize("rule", RULES)
def test_a_row_without_a_value_names_its_column(rule):
    row = rows(OF_RULE[rule])[0]
    assert json.dumps(RULES[rule].made(row, 42))
    for column in RULES[rule].reads:
        with pytest.raises(ValueError, match=f"{column} must be given"):
            RULES[rule].made(row | {column: None}, 42)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda value: st.lists(value) | st.dictionaries(st.text(), value),
    max_leaves=10,
)


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
def test_odd_values_are_a_bad_row_at_most(rule, data):
    row = dict(rows(OF_RULE[rule])[0])
    for column in data.draw(st.sets(st.sampled_from(RULES[rule].columns), min_size=1)):
        row[column] = data.draw(JSON)
    try:
        made = RULES[rule].made(row, 42)
    except ValueError as error:
        assert len(str(error)) < 300
    else:
        assert {*RULES[rule].makes, *RULES[rule].keeps} <= made.keys()


@pytest.mark.parametrize(
    "test", ["assert f(" + "(" * 5000, "assert " + "-" * 50_000 + "1", "\0", ""]
)
def test_no_assertion_is_too_odd_to_be_refused(test):
    with pytest.raises(ValueError, match="must hold assertions"):
        called_function(test)


def test_an_unknown_rule_is_refused():
    with pytest.raises(DataError, match=r"data\.rule must be one of gpqa, .*, got 'gpq'"):
        find_rule("gpq")
