r"""Pairs of a gold answer and a text, made by hand; in each table right and wrong alternate.

A grader that accepts everything, or nothing, fails half of them.
"""

import pytest

from rmas_jax.data import Example
from rmas_jax.evaluation.graders import GRADERS

# Gold answer, right text, wrong text.
QA = [
    ("Paris", r"\boxed{paris}", r"\boxed{Rome}"),
    ("Paris", "Paris.", "Paris, Texas"),
    ("The Beatles", "beatles", "The Beetles"),
    ("an apple", r"\boxed{The Apple!}", r"\boxed{apples}"),
    ("yes", "Yes.", "yes and no"),
    ("no", r"\boxed{No}", r"\boxed{not}"),
    ("AT&T", r"\boxed{AT\&T}", r"\boxed{AT T}"),
    ("U.S. Route 1", "US Route 1", "US Route 11"),
    ("New York", r"\boxed{\text{New York}}", r"\boxed{\text{New York City}}"),
    ("New York", r"\boxed{\textbf{New}~\textbf{York}}", r"\boxed{NewYork}"),
    ("1,234", r"\boxed{1{,}234}", "1.234"),
    ("1.5 million", "1.5 million", "15 million"),
    ("1,234.5", "1234.5", "12345"),
    ("-5", r"\boxed{-5}", r"\boxed{5}"),
    ("3-1", "3-1", "31"),
    ("1990", "<think>1989?</think> 1990", "<think>1990</think> 1989"),
    ("1990", "1989</think>1990", "<think>1990"),
    ("1990", r"<think>\boxed{1989}</think>\boxed{1990}", r"<think>\boxed{1990}"),
    ("72", "She sold 48 and 24.\n#### 72", "She sold 72.\n#### 24"),
    ("#### 72", r"\boxed{72}", r"\boxed{720}"),
    ("Paris", r"\boxed{Rome}? No: \boxed{Paris}", r"\boxed{Paris}? No: \boxed{Rome}"),
    ("Paris", r"Not Rome. It is \boxed{Paris}", r"It is not \boxed{Paris}"),
    ("Paris", r"\boxed{Paris}, \boxed{Paris}", r"\boxed{Rome} or \boxed{Paris}"),
    ("Paris", "**Paris**", "It is Paris"),
    ("A", "A", "the"),
    ("O'Brien", "OBrien", "O Brien"),
    ("Beyoncé", "BEYONCÉ", "Beyonce"),
    ("Who's Next", r"\boxed{Whos next}", r"\boxed{Who is next}"),
    ("Jean-Luc Godard", "jean-luc godard", "Jean Luc Godard"),
    ("Guns N' Roses", "Guns N\u2019 Roses", "Guns and Roses"),
    ("1990\u20131995", "1990-1995", "19901995"),
    ("Beyonc\u00e9", "Beyonce\u0301", "Beyonce\u0300"),
    ("-40", "\u221240", "40"),
    ("106", "\uff11\uff10\uff16", "10\u2076"),
    ("Paris", r"It is not Rome but \boxed{Paris}", r"It is anything but \boxed{Paris}"),
    ("Paris", r"\boxed{Paris} is the answer.", r"\boxed{Paris} is not the answer."),
    ("5", r"\boxed{5} people", r"\boxed{5} million"),
]
CHOICE = [
    ("B", "(B)", "(C)"),
    ("B", "B.", "BC."),
    ("B", r"\boxed{\text{B}}", r"\boxed{\text{A}}"),
    ("B", r"\boxed{\textbf{(B)}}", r"\boxed{\textbf{(D)}}"),
    ("B", "B: Paris", "A: Paris"),
    ("(B)", r"\boxed{\mathrm{b}}", r"\boxed{\mathrm{beta}}"),
    ("B: Paris", r"\boxed{B}", r"\boxed{Paris}"),
    (r"\boxed{B}", "The answer is B.", "The answer is not B."),
    ("B", r"\boxed{(B) 24}", r"\boxed{24}"),
    ("B", "**Answer: B**", "**Answer: A or B**"),
    ("B", r"\boxed{A}? No, \boxed{B}", r"\boxed{A} or \boxed{B}"),
    ("B", r"It is not A, so \boxed{B}", r"It is not \boxed{B}"),
    ("B", r"<think>\boxed{A}</think>\boxed{B}", r"<think>\boxed{B}</think>\boxed{A}"),
    ("B", "I compare.</think>B", "<think>B"),
    ("A", r"\boxed{A}", "I cannot tell"),
    ("A", r"\boxed{A: a dog}", "A dog"),
    ("#### B", "Cheap.\n#### (B)", "B is dear.\n#### (C)"),
    ("C", r"\[\boxed{\mathbf{C}}\]", r"\[\boxed{\mathbf{C}_1}\]"),
    ("D", r"\boxed{\text{Option D}}", r"\boxed{\text{Options}}"),
    ("D", "I would go with D.", "I would go with Dora."),
    ("J", r"\boxed{J}", r"\boxed{I}"),
    ("B", r"\boxed{B: Vitamin C}", r"\boxed{C: Vitamin B}"),
    ("B", r"\boxed{\text{B. }\frac{1}{2}}", r"\boxed{\frac{B}{2}}"),
    ("B", r"$\boxed{(\text{B})}$", r"$\boxed{(\text{B},\text{C})}$"),
    ("B", "B is the correct answer.", "B is the wrong answer."),
    ("B", "<answer>B</answer>", "<answer>2</answer>"),
    ("B", r"\boxed{B}, as A or C are too dear", r"\boxed{B} or C"),
    ("E", r"\boxed{\textbf{(E)}\ \text{none of these}}", r"\boxed{\text{none of these}}"),
    ("B", "I'd go with B.", "I'd go with Bob."),
    ("B", "So the answer must be B.", "So the answer must be B or C."),
    ("B", "The answer is B. It is cheap.", "The answer is B. Actually no."),
    ("B", r"\boxed{B}, A is dear", r"\boxed{B}, A"),
    ("B", r"$\boxed{B}$ and we are done", r"$\boxed{B} \text{ or } C$"),
    ("B", r"\boxed{\large B}", r"\boxed{\large B_1}"),
    ("B", r"It cannot be A, so \boxed{B}", r"It cannot be \boxed{B}"),
    ("B", r"\boxed{B}: A is wrong", r"\boxed{B} is wrong"),
]
TEXT = [
    ("Paris", "paris", "Paris."),
    ("New  York", " New\n york ", "NewYork"),
    ("Paris", r"It is \boxed{Paris}.", "It is Paris."),
    ("Paris", r"\boxed{\text{Paris}}", r"\boxed{\text{Paris}, \text{Rome}}"),
    ("New York", r"\boxed{\textbf{ New York }}", r"\boxed{\text{New} \text{York}}"),
    (r"\boxed{\mathrm{Na}}", "na", r"\boxed{\mathrm{Na}^+}"),
    ("42", r"\boxed{41}, no: \boxed{42}", r"\boxed{42}, no: \boxed{41}"),
    ("42", r"\boxed{42}", r"\boxed{41} or \boxed{42}"),
    ("42", r"so \boxed{42}", r"so not \boxed{42}"),
    ("1", "1", "1.0"),
    ("#### 72", "It is 24 + 48.\n#### 72", "It is 72.\n#### 24"),
    ("#### 72", "72.0", "72.5"),
    ("#### 1,234", r"\boxed{\$1{,}234}", r"\boxed{1{,}23}"),
    ("#### -3", r"\boxed{-3}", r"\boxed{3}"),
    ("#### 0.5", r"\boxed{.50}", r"\boxed{5}"),
    ("72", "<think>71?</think>72", "<think>72</think>71"),
    ("72", r"\boxed{71}</think>\boxed{72}", r"\boxed{72}</think>\boxed{71}"),
    ("72", "<think>so</think>\n\n#### 72", "<think>so\n#### 72"),
    ("72", r"<think>\boxed{7</think>\boxed{72}", r"\boxed{72} <think> or"),
    ("a b", "A  B", "a, b"),
    ("Straße", "STRASSE", "Strase"),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", r"\boxed{\frac{1}{3}}"),
    (r"\boxed{x \in \{1, 2\}}", r"x \in \{1, 2\}", r"x \in \{1, 3\}"),
    ("none", r"\boxed{none}", r"\boxed{}"),
    ("none", "None", ""),
    ("7", r"\boxed{7} and \boxed{cut off", r"\boxed{7"),
    ("7", r"\[ \boxed{7} \]", r"\[ 7 \]"),
    ("def", "DEF", "d e f"),
    ("5", r"$x=\boxed{5}$", r"$x=-\boxed{5}$"),
]
PAIRS = [
    (grader, gold, text, is_right)
    for grader, table in (("qa", QA), ("choice", CHOICE), ("text", TEXT))
    for gold, *texts in table
    for text, is_right in zip(texts, (True, False), strict=True)
]


@pytest.mark.parametrize(("grader", "gold", "text", "is_right"), PAIRS)
def test_pairs(grader, gold, text, is_right):
    assert GRADERS[grader](text, Example("0", "?", gold)).correct is is_right


def test_there_are_many_and_right_and_wrong_alternate():
    assert len(PAIRS) >= 150 and [pair[-1] for pair in PAIRS] == [True, False] * (len(PAIRS) // 2)
    assert len({pair[:3] for pair in PAIRS}) == len(PAIRS)
