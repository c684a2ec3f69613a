"""Compares short answers to questions as HotpotQA does: exact match (EM) and F1 of normal forms.

Reference: hotpot_evaluate_v1.py, whose normal form is SQuAD's. It drops all punctuation, so that it
takes 1.5 for 15, -5 for 5, 5% for 5, C++ for C and "The" for "a"; here, exact match alone does not
make an answer correct: numbers, per cent, bounds (<5) and the signs at a word's end (C#, A+) must
agree too, and an answer of nothing but articles and punctuation must equal the gold answer itself.
A dollar sign may be missing, and the typography of quotes, dashes and accents may differ, which the
reference counts. `Verdict.scores` holds the reference's two measures, unchanged.
"""

from __future__ import annotations

import collections
import json
import re
import string

from rmas_jax.data.examples import Example
from rmas_jax.evaluation.graders.marked import (
    find_answer,
    plain_typography,
    without_markup,
)
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict, compared
from rmas_jax.host.errors import InputError, shown

GOLDS_FIELD = "answers"  # field with all gold answers, as a JSON list; without it there is one
CLOSED = ("yes", "no", "noanswer")  # share no words with other answers
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,)(?=\d{3}(?!\d))")
_COUNTS = re.compile(  # numbers with their inner signs, signs, bounds, per cent; C++, C#
    r"\d+|(?<=\d)[^\w\s](?=\d)|(?<![\w.])[-.](?=\d)|[<>~](?=\s*\d)|%|(?<=\w)[+#]+"
)


def normal_form(text: str) -> str:
    """In lower case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, wanted: str) -> bool:
    """HotpotQA's EM of two answers."""
    return normal_form(given) == normal_form(wanted)


def f1(given: str, wanted: str) -> float:
    """HotpotQA's F1 of the words of two answers: 0 to 1, symmetric."""
    given, wanted = normal_form(given), normal_form(wanted)
    if given != wanted and (given in CLOSED or wanted in CLOSED):
        return 0.0
    words, gold_words = given.split(), wanted.split()
    common = (collections.Counter(words) & collections.Counter(gold_words)).total()
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0


def gold_answers(example: Example) -> list[str]:
    """The gold answers to a question: that of the example, and those of the field `answers`.

    Raises:
      InputError: the field is no JSON list of texts.
    """
    golds = [example.answer]
    if GOLDS_FIELD in example.fields:
        listed = example.fields[GOLDS_FIELD]
        try:
            further = json.loads(listed)
        except (ValueError, RecursionError):
            further = None
        if not isinstance(further, list) or not all(isinstance(gold, str) for gold in further):
            raise InputError(
                f"row {shown(example.id)}: {GOLDS_FIELD} must be a list of texts, got "
                f"{shown(listed)}"
            )
        golds += further
    found = (find_answer(gold) for gold in golds)
    return [gold.answer for gold in found if gold is not None]


def grade_qa(text: str, example: Example) -> Verdict:
    """Correct if a gold answer has the same normal form, numbers and signs; scores EM and F1."""
    golds = [without_markup(gold) for gold in gold_answers(example)]
    found = find_answer(text)
    if found is None or found.is_hedged:
        return Verdict(None, Outcome.UNPARSED, scores={"exact_match": 0.0, "f1": 0.0})
    given = without_markup(found.answer)
    plain, plain_golds = plain_typography(given), map(plain_typography, golds)
    matched = [gold for gold in plain_golds if exact_match(plain, gold)]
    is_correct = any(_kept(plain) == _kept(gold) for gold in matched)
    scores = {
        "exact_match": float(any(exact_match(given, gold) for gold in golds)),
        "f1": max((f1(given, gold) for gold in golds), default=0.0),
    }
    reason = "differs in punctuation that counts" if matched and not is_correct else ""
    return compared(found.answer, is_correct)._replace(reason=reason, scores=scores)


def _kept(text: str) -> list[str]:
    """The part of an answer that counts although the normal form drops it."""
    if not normal_form(text):
        return text.casefold().split()
    return _COUNTS.findall(_THOUSANDS.sub("", text))
