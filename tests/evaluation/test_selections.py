"""Majority vote and best-of, with the graders that read real answers."""

import numpy as np
import pytest

from rmas_jax.agents.answers import Texts
from rmas_jax.config.benchmark import ACCURACY
from rmas_jax.data import Example
from rmas_jax.evaluation.answering import BatchAnswers, Costs
from rmas_jax.evaluation.graders import GRADERS, Grader
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict, compared
from rmas_jax.evaluation.grading import graded_rows, join_rollouts
from rmas_jax.evaluation.rows import Measurement
from rmas_jax.evaluation.selections import any_correct, majority

KEY = Measurement("majority_vote", 1, "words", "test", 0)
ROLES = ("planner", "critic", "solver", "checker")  # the last one answers


def verdicts(**predictions):
    return {role: compared(prediction, False) for role, prediction in predictions.items()}


def voted(**predictions):
    found = verdicts(**predictions)
    return majority(found, lambda a, b: found[a].prediction == found[b].prediction)


@pytest.mark.parametrize(
    ("predictions", "selected"),
    [
        ({"a": "1", "b": "1", "c": "2"}, "b"),  # the larger group, by its last role
        ({"a": "1", "b": "2", "c": "3"}, "c"),  # a tie: the answerer's
        ({"a": "1", "b": "2", "c": "1", "d": "2"}, "d"),
        ({"a": "1", "b": "2", "c": "2", "d": "1", "e": None}, "d"),  # the latest role that votes
        ({"a": "1", "b": None, "c": None}, "a"),  # the unparsed do not vote
        ({"a": None, "b": None}, "b"),  # nobody votes
        ({"a": "7"}, "a"),
    ],
)
def test_the_largest_group_of_equal_answers_wins(predictions, selected):
    assert voted(**predictions) == selected


def test_answers_that_a_third_one_joins_are_one_group():
    found = verdicts(a="1/2", b="5", c="50 %", d="5", e="0.5")
    joined = {frozenset(pair) for pair in ("ae", "ce", "bd")}
    assert majority(found, lambda a, b: frozenset(a + b) in joined) == "e"
    assert majority(found, lambda a, b: frozenset(a + b) in {frozenset("bd")}) == "d"


def test_the_best_answer_is_the_last_right_one():
    right, wrong = Verdict("1", Outcome.CORRECT), Verdict("2", Outcome.WRONG)
    never = pytest.fail  # an oracle compares nothing
    assert any_correct({"a": right, "b": right, "c": wrong}, never) == "b"
    assert any_correct({"a": wrong, "b": wrong, "c": wrong}, never) == "c"


def texts(*rows):
    nothing = np.zeros(len(rows), np.int32)
    cut = np.arange(len(rows)) > 0
    return Texts("", list(rows), nothing, nothing, nothing > 0, cut, np.zeros(len(rows)))


def rows_of(grader, golds, *rollouts, selection="majority"):
    """Rows of questions; a rollout: for each question, the texts of all roles."""
    steps, hashes = np.full(len(golds), 5), ["0"] * len(golds)
    examples = [Example(i, f"question {i}", gold) for i, gold in enumerate(golds)]
    graded = []
    for rollout in rollouts:
        by_agent = {role: [texts(*(row[i] for row in rollout))] for i, role in enumerate(ROLES)}
        own = Costs(4 * steps, steps, steps)
        answers = BatchAnswers(by_agent, *own, own, hashes, selection=selection)
        graded.append(graded_rows(KEY, examples, grader, answers))
    return [join_rollouts(of_item, ACCURACY) for of_item in zip(*graded, strict=True)]


def boxed(*answers):
    return [f"So it is \\boxed{{{answer}}}." if answer else "I do not know." for answer in answers]


@pytest.mark.parametrize(
    ("answers", "selected", "correct"),
    [
        (("\\frac{1}{2}", "7", "0.5", "8"), "solver", True),  # equal to the grader alone
        (("\\frac{1}{2}", "7", "0.51", "7"), "checker", False),  # not equal
        (("0.5", "7", "7", None), "solver", False),
        ((None, "0.5", None, None), "critic", True),
        (("0.5", "0.50", "1/2", "7"), "solver", True),
        (("7", "8", "9", "1/2"), "checker", True),
    ],
)
def test_answers_are_equal_as_the_grader_sees_them(answers, selected, correct):
    [row] = rows_of(GRADERS["math"], ["1/2"], [boxed(*answers)])
    assert (row["selected"], row["correct"]) == (selected, correct)
    assert row["text"] == boxed(*answers)[ROLES.index(selected)]
    assert {role: rollout["text"] for role, rollout in row["agents"].items()} == dict(
        zip(ROLES, boxed(*answers), strict=True)
    )
    assert row["agents"][selected] == {column: row[column] for column in row["agents"][selected]}


def test_letters_of_options_vote():
    [row] = rows_of(GRADERS["choice"], ["B"], [["\\boxed{B}", "\\boxed{A}", "(A)", "Answer: (B)"]])
    assert (row["selected"], row["prediction"], row["correct"]) == ("checker", "B", True)


def test_each_rollout_has_its_own_vote():
    first, second = boxed("1", "1", "2", "3"), boxed("1", "2", "2", "3")
    other = boxed("4", "4", "4", None)
    rows = rows_of(GRADERS["math"], ["1", "4"], [first, other], [second, other])
    assert [[r["selected"] for r in row["rollouts"]] for row in rows] == [
        ["critic", "solver"],
        ["solver", "solver"],
    ]
    assert [[r["correct"] for r in row["rollouts"]] for row in rows] == [
        [True, False],
        [True, True],
    ]
    assert [row["at_limit"] for row in rows] == [False, True]
    assert all(len(r["agents"]) == 4 for row in rows for r in row["rollouts"])


def test_a_grader_that_equates_nothing_compares_predictions_alone():
    """Programs are not the gold answer of other programs: the grader is not called for pairs."""
    graded = []

    def grade(text, example):
        graded.append((text, example.answer))
        return compared(text, text == example.answer)

    for equates, calls in ((False, 4), (True, 4 + 12)):
        graded.clear()
        rows_of(Grader("words", "texts", grade, equates=equates), ["a"], [["a", "b", "c", "d"]])
        assert len(graded) == calls
    assert {name for name, grader in GRADERS.items() if not grader.equates} == {
        "code",
        "judge",
        "reasoning",
    }


def test_a_grader_that_crashes_on_a_pair_leaves_them_apart():
    def grade(text, example):
        if example.answer != "gold":
            raise RuntimeError("no such gold answer")
        return compared(text, False)

    [row] = rows_of(Grader("words", "texts", grade), ["gold"], [["a", "b", "a", "c"]])
    assert (row["selected"], row["outcome"]) == ("solver", "wrong")


def test_best_of_the_agents_is_right_if_one_of_them_is():
    rows = rows_of(
        GRADERS["math"],
        ["1", "2"],
        [boxed("1", "3", "3", "3"), boxed("1", "3", None, None)],
        selection="any_correct",
    )
    assert [(row["selected"], row["correct"]) for row in rows] == [
        ("planner", True),
        ("checker", False),
    ]
    assert rows[1]["outcome"] == "unparsed"
