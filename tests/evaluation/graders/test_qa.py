"""Exact match and F1 against the official definition, written anew from it."""

import collections
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation.graders import GRADERS, check_golds
from rmas_jax.evaluation.graders.marked import plain_typography
from rmas_jax.evaluation.graders.qa import exact_match, f1, grade_qa, normal_form
from rmas_jax.evaluation.graders.verdict import Outcome
from rmas_jax.host.errors import InputError

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
COMMON = ("the", "A.", "an", "yes", "no", "noanswer", "Paris", "paris", "1.5", "15", "-5", "U.S.")
words = st.lists(st.sampled_from(COMMON) | st.text(max_size=6), max_size=6).map(" ".join)


def official_form(text):
    """SQuAD's normalize_answer, by characters: no regular expression, no translation table."""
    kept = "".join(c for c in text.lower() if c not in PUNCTUATION)
    runs = itertools.groupby(kept, lambda c: c.isalnum() or c == "_")
    without = ["".join(run) for _, run in runs]
    return " ".join("".join(" " if run in ("a", "an", "the") else run for run in without).split())


def official_f1(text, gold):
    """HotpotQA's f1_score, from precision and recall."""
    text, gold = official_form(text), official_form(gold)
    for one in (text, gold):
        if one in ("yes", "no", "noanswer") and text != gold:
            return 0.0
    common = sum((collections.Counter(text.split()) & collections.Counter(gold.split())).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(text.split()), common / len(gold.split())
    return 2 * precision * recall / (precision + recall)


def answered(gold, **fields):
    """An example with this gold answer."""
    return Example("0", "?", gold, fields=fields)


@given(words, words)
def test_both_measures_are_the_official_ones(text, gold):
    assert normal_form(text) == official_form(text)
    assert exact_match(text, gold) == (official_form(text) == official_form(gold))
    assert f1(text, gold) == pytest.approx(official_f1(text, gold), abs=1e-12)


@given(words, words)
def test_f1_is_symmetric_and_full_for_the_same_words_only(text, gold):
    score = f1(text, gold)
    assert score == f1(gold, text) and 0 <= score <= 1
    bags = [collections.Counter(normal_form(answer).split()) for answer in (text, gold)]
    assert (score == 1) == (bags[0] == bags[1] and bags[0].total() > 0)


@given(st.text())
def test_the_normal_form_of_a_normal_form_is_itself(text):
    assert normal_form(normal_form(text)) == normal_form(text)


@given(words)
def test_an_answer_is_right_against_itself_and_never_without_an_exact_match(text):
    for gold in (text, "the 15 paris"):
        verdict = grade_qa(text, answered(gold))
        assert verdict.correct <= exact_match(plain_typography(text), plain_typography(gold))
    assert grade_qa(text, answered(text)).correct == bool(text.strip())


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        ("the 44th President Barack Obama", "Barack Obama", 2 * 2 / (4 + 2)),
        ("Paris Paris", "Paris", 2 / 3),
        ("Rome", "Paris", 0),
        ("yes they are", "yes", 0),
        ("no", "no one", 0),
        ("noanswer", "no answer", 0),
        ("No!", "no", 1),
        ("Obama Barack", "Barack Obama", 1),
        ("", "Paris", 0),
        ("the", "a", 0),
    ],
)
def test_f1_of_known_pairs(text, gold, score):
    assert f1(text, gold) == pytest.approx(score) == pytest.approx(official_f1(text, gold))


def test_a_verdict_holds_both_scores():
    verdict = grade_qa(r"It is \boxed{President Obama}.", answered("Barack Obama"))
    assert (verdict.prediction, verdict.outcome) == ("President Obama", Outcome.WRONG)
    assert verdict.scores == {"exact_match": 0.0, "f1": 0.5}
    for text in ("", "<think>Paris", r"\boxed{Rome} or \boxed{Paris}"):
        verdict = grade_qa(text, answered("Paris"))
        assert verdict.outcome is Outcome.UNPARSED and set(verdict.scores.values()) == {0.0}


PUNCTUATED = (("1.5", "15"), ("-5", "5"), ("2-1", "21"), ("A", "the"), (".5", "5"), ("5%", "5"))
PUNCTUATED += (
    ("~5", "5"),
    ("5 %", "5"),
    ("C++", "C"),
    ("C#", "C"),
    ("A+", "a-"),
    ("<5", "5"),
    ("10^6", "106"),
)


@pytest.mark.parametrize("pair", PUNCTUATED)
def test_punctuation_that_counts_makes_an_answer_wrong_and_leaves_the_official_scores(pair):
    for gold, text in (pair, pair[::-1]):
        assert grade_qa(gold, answered(gold)).correct
        verdict = grade_qa(text, answered(gold))
        assert verdict.outcome is Outcome.WRONG and verdict.scores["exact_match"] == 1.0
        assert verdict.reason == "differs in punctuation that counts"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("5%", "5 %"),
        ("5%", r"\boxed{5\%}"),
        ("$5", "5"),
        ("#1", "1"),
        ("C++", "c++"),
        ("U.S.", "US"),
    ],
)
def test_punctuation_that_does_not_count(gold, text):
    assert grade_qa(text, answered(gold)).correct and grade_qa(gold, answered(text)).correct


def test_the_best_of_several_gold_answers_counts():
    golds = answered("New York City", answers=json.dumps(["NYC", "The Big Apple"]))
    for text in ("new york city", "N.Y.C.", "big apple"):
        assert grade_qa(text, golds).correct
    verdict = grade_qa("an apple", golds)
    assert not verdict.correct and verdict.scores["f1"] == pytest.approx(2 / 3)
    assert not grade_qa("NYC", answered("New York City", other='["NYC"]')).correct


@pytest.mark.parametrize("listed", ["NYC", '"NYC"', "[1]", "[", "{}", "[" * 100_000])
def test_gold_answers_that_are_no_list_of_texts_are_refused_before_a_run(listed):
    example = answered("New York City", answers=listed)
    with pytest.raises(InputError, match="row '0': answers must be a list of texts, got "):
        check_golds(GRADERS["qa"], {"test": [example]})


def test_a_gold_answer_without_an_answer_is_refused():
    with pytest.raises(ConfigError, match=r"test: gold answers .* 1 others of 1.*\(grader qa\)"):
        check_golds(GRADERS["qa"], {"test": [answered("<think>Paris")]})


def test_long_answers_take_no_long_time():
    for part in ("the ", "1,000", "-.", "\\text{", "~", "<b>", "{,}"):
        grade_qa("\\boxed{" + part * 100_000 + "}", answered("1,000"))
        grade_qa(part * 100_000, answered(part * 100_000))
