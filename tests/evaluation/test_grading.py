"""Rows of results from graded rollouts: costs and endings of all that a metric uses."""

import numpy as np
import pytest

from rmas_jax.agents.answers import Texts
from rmas_jax.config.benchmark import ACCURACY, PASS_AT_K
from rmas_jax.data import Example
from rmas_jax.evaluation.answering import Listened
from rmas_jax.evaluation.graders import GRADERS
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict
from rmas_jax.evaluation.grading import graded_rows, join_rollouts, result_row
from rmas_jax.evaluation.rows import Measurement

KEY = Measurement("recursive_mas", 1, "words", "test", 0)
EXAMPLES = [Example("a", "Is it a?", "a"), Example("b", "Is it b?", "b")]
LISTENED = Listened(None, np.array([3, 4]), np.array([10, 20]), np.array([100.0, 200.0]))
# Rollout -> for both questions: text, tokens, FLOPs, whether it is cut off.
WRITTEN = [
    (["c", ""], [2, 1], [8.0, 4.0], [True, False]),
    (["a", ""], [5, 1], [20.0, 4.0], [False, True]),
    (["", "crash"], [1, 6], [4.0, 24.0], [False, True]),
]


def grade(text, example):
    if text == "crash":
        return Verdict(None, Outcome.CRASHED)
    return GRADERS["text"](text, example)


def rows_of(metric, listened=LISTENED):
    graded = []
    for texts, tokens, flops, cut in WRITTEN:
        nothing = np.zeros(2, int)
        cut = np.array(cut)
        written = Texts("", texts, np.array(tokens), nothing, nothing > 0, cut, np.array(flops))
        answers = listened._replace(prompt_hashes=["x", "y"]).answered({"solver": [written]})
        graded.append(graded_rows(KEY, EXAMPLES, grade, answers))
    items = [join_rollouts(of_item, metric) for of_item in zip(*graded, strict=True)]
    return items, result_row(KEY, {"metric": metric}, items, 1.0)


def costs(item):
    return item["tokens"], item["steps"], item["flops"]


def test_pass_at_k_pays_for_all_of_its_answers_and_accuracy_for_the_first():
    items, row = rows_of(PASS_AT_K)
    # Thoughts and messages once, all texts, and the longest chain through one of them.
    assert costs(items[0]) == (3 + 2 + 5 + 1, 10 + 5, 132.0)
    assert costs(items[1]) == (4 + 1 + 1 + 6, 20 + 6, 232.0)
    assert row["pass_at_k"] == 0.5 and row["correct"] == 0
    assert (row["tokens_per_item"], row["steps_per_item"]) == (11.5, 20.5)
    assert row["flops_per_item"] == pytest.approx(182.0)
    first, _ = rows_of(ACCURACY)
    assert [costs(item) for item in first] == [(5, 12, 108.0), (5, 21, 204.0)]
    assert [r["cost"]["tokens"] for r in first[0]["rollouts"]] == [2, 5, 1]


@pytest.mark.parametrize("metric", [ACCURACY, PASS_AT_K])
def test_endings_are_counted_over_all_answers(metric):
    _, row = rows_of(metric)
    assert (row["unparsed"], row["at_limit"], row["crashed"], row["timeout"]) == (3, 3, 1, 0)
