"""Letters of options, in what models write."""

import re

import pytest

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.data import Example
from rmas_jax.evaluation.graders.choice import choice_of, grade_choice
from rmas_jax.evaluation.graders.text import grade_text
from rmas_jax.evaluation.graders.verdict import compared


def answered(gold):
    """An example with this gold answer."""
    return Example("0", "?", gold)


# Each chooses B, and in a box.
BOXED = [
    r"\boxed{B}",
    r"\boxed{(B)}",
    r"\boxed{B.}",
    r"\boxed{B)}",
    r"\boxed{ b }",
    r"\boxed{(b)}",
    r"\boxed{[B]}",
    r"\boxed{B,}",
    r"\boxed{\text{B}}",
    r"\boxed{\text{(B)}}",
    r"\boxed{\textbf{B}}",
    r"\boxed{\textbf{(B)}}",
    r"\boxed{\textbf{(B)}\ 24}",
    r"\boxed{\textbf{(B) } 24}",
    r"\boxed{\mathbf{(B)}~\frac{1}{2}}",
    r"\boxed{\mathrm{B}}",
    r"\boxed{\boldsymbol{B}}",
    r"\boxed{{\bf B}}",
    r"\boxed{\left(B\right)}",
    r"\boxed{\,B\,}",
    r"\boxed{$B$}",
    r"\boxed{B: Paris}",
    r"\boxed{B. Paris}",
    r"\boxed{B) Paris}",
    r"\boxed{B - Paris}",
    r"\boxed{B (Paris)}",
    r"\boxed{(B) Paris}",
    r"\boxed{\text{B: Paris}}",
    r"\boxed{B\text{: Paris}}",
    r"\boxed{Option B}",
    r"\boxed{\text{Option B}}",
    r"\boxed{\text{Answer: B}}",
    r"\boxed{(B) P(A) = 0.5}",
    r"\boxed{B: Vitamin C}",
    r"\boxed{B: False}",
    r"\boxed{B: x}",
    r"$\boxed{B}$",
    r"\[\boxed{\text{B}}\]",
    r"**\boxed{B}**",
    r"\boxed {B}",
    r"\boxed{\boxed{B}}",
    r"\boxed{A}? No, it must be \boxed{B}, I think.",
    "\\boxed{A}\n\nWait. That is wrong.\n\n\\boxed{B}",
]
# Each chooses B, and is nothing but that.
WHOLE = [
    *("B", "b", "(B)", "B)", "B.", "[B]", "$B$", r"\(B\)", "**B**", "`B`", "'B'", '"B"', "\uff22"),
    *("(B) Paris", "**(B) Paris**", "B: Paris", "B. Paris", "b) paris", "B) A dog", "(B) 3.5 m"),
    *("Option B", "option (b)", "The answer is B.", "The answer is (B).", "Answer: B"),
    *("**Answer: B**", "Final answer: **B**", "The correct answer is option B: Paris."),
    *("So the answer is B", "Therefore, the answer is (B).", "I choose B", "I would go with B."),
    *(
        "B is correct",
        "B is the correct answer.",
        "(B) is my final answer.",
        "B is the answer.",
        "<answer>B</answer>",
        "答案:\uff08B\uff09",
        "故选 B。",
    ),
    *("Ans: B", "So, B is the correct answer.", "Therefore (B).", "answer: option B"),
    *("Selected option: B", "The chosen option is (B)"),
    *("#### B", "It is cheap.\n#### (B)"),
]
# Each states B at its end, after other letters.
STATED = [
    "A. yes B. no C. maybe ... Answer: B",
    "A) yes\nB) no\nC) maybe\n\n**Answer:** B",
    "(A) 1 (B) 2 (C) 3\nWe get 2.\nAnswer: (B) 2",
    "## Final Answer\n\nB",
    "Answer:\nB",
    "**Final Answer**: $B$",
    "A is too small.\nC is too big.\n\nSo the answer is B.",
    "Since energy is conserved, the answer is (B).",
    "A is wrong. Therefore, the correct option is B: 3 m.",
    "Options: A or B? Answer: B because it is cheap.",
    "We compare A and C. I'll go with B.",
    "A is cheap, but I choose (b).",
    "Let me think. I think the answer is B",
    "We compare A and C. So, B is the correct answer.",
    "(A) is too cheap.\n(B) is the best choice.",
    "The answer is B. We check C: no.\nAnswer: B",
    "A\u592a\u5c0f\uff0c\u6240\u4ee5\u7b54\u6848\u662fB\u3002",
]
# After thinking, or beyond the pattern of this grader's answer retry.
OTHER = [
    r"<think>\boxed{A}</think> \boxed{B}",
    "<think>A or C?</think>\n\nB",
    "I compare A and C.</think>(B)",  # the template opened the block
    r"\boxed{(B) not enough information}",
    r"\boxed{(B) I and II only}",
    r"\boxed{B} and \boxed{B}",
]
# None of these chooses one letter.
NONE = [
    *("", "Because", "Basic", "Paris", "A dog", "A cat sat.", "T-shirt", "X-ray", "B1", "B'", "1"),
    *("A or B", "not B", "B and C", "either B", "B or C", "B, C", "B; C", "A/B", "A & B", "AB"),
    *("A B", "A-B", "(A) or (B)", "(A) and (B)", "(A) Paris (B) Rome", "A: Paris, B: Rome"),
    *("A) Paris\nB) Rome\nC) Oslo", "B?", "(B)?", "Maybe B", "maybe (B)", "N/A", "All of them"),
    *("None of the above", "I think it is B or C", "I don't know", "U.S.", "e.g.", "A. B. Smith"),
    *("B is wrong", "A. is wrong", "(B) is not correct", "The answer is not B", "B but not C"),
    *("The answer is A or B", "The answer is a dog", "The answer is Because", "B. or C"),
    *("The answer is A. No, the answer is B.", "A. Let me consider: C is right", "Let me think. B"),
    *("Option A is wrong. Option B is right.", "#### A or B", "#### 2", "<think>B</think>"),
    *("A good idea", "The answer is a good idea.", "The correct answer is A dog", "I choose a dog"),
    *(
        "If the answer is C, we win.",
        "I don't think the answer is C.",
        "John says the answer is C.",
    ),
    *(
        "It is not true that the answer is C",
        "Vitamin C is the correct answer.",
        "Plan A is the best choice.",
        "So a dog",
        "Thus, C or D",
        "A is the best answer. No: B is the best answer.",
        "A is the best answer. B is the best answer.",
        "I pick up a book",
        "The answer is unclear: A",
        "Answer: A. Wait, it is B.",
    ),
    *("Answer:\nA. yes\nB. no", "Answer choices: A. yes B. no", "Answer: A\nB", "Answer: C?"),
    *(
        "Compare. The answer is A or B",
        "Compare. The answer is not C",
        "Answer: C and D",
        "Answer: C, D",
    ),
    *(
        "The answer is C if x > 0 and D otherwise",
        "The answer is A. But B is right",
        "I choose A over B",
    ),
    *("Answer: A\nBut I was wrong.\nAnswer: B", "Is the answer C?", "Final answer: Carbon"),
    r"\boxed{}",
    r"\boxed{2}",
    r"\boxed{AB}",
    r"\boxed{A or B}",
    r"\boxed{A \text{ or } B}",
    r"\boxed{A,B}",
    r"\boxed{(A)(B)}",
    r"\boxed{(A) or B}",
    r"\boxed{\text{not B}}",
    r"\boxed{\text{Because}}",
    r"\boxed{B \text{ecause}}",
    r"\boxed{\neg B}",
    r"\boxed{~B}",
    r"\boxed{\bar{B}}",
    r"\boxed{B_1}",
    r"\boxed{B=5}",
    r"\boxed{B: C}",
    r"\boxed{A: no, B: yes}",
    r"\boxed{B (or C)}",
    r"\boxed{A} or \boxed{B}",
    r"$\boxed{A}$, $\boxed{B}$",
    r"\boxed{A}\boxed{B}",
    r"\(\boxed{A}\)\ \(\boxed{B}\)",
    r"\boxed{B} or C",
    r"The answer is not \boxed{B}",
    r"\boxed{B",
    r"<think>\boxed{B}",
    r"\boxed{A} <think> or \boxed{B}",
]


@pytest.mark.parametrize("text", [*BOXED, *WHOLE, *STATED, *OTHER])
def test_one_letter_is_read(text):
    assert grade_choice(text, answered("B")) == compared("B", True)
    assert grade_choice(text, answered("(C) Rome")) == compared("B", False)


@pytest.mark.parametrize("text", NONE)
def test_texts_without_one_letter_are_unparsed(text):
    assert grade_choice(text, answered("B")) == compared(None, False)
    assert grade_choice("B", answered(text)) == compared("B", False)


@pytest.mark.parametrize("gold", ["B", "b", "(B)", "B: Paris", r"\boxed{B}", "We see.\n#### B"])
def test_gold_answers_may_have_the_same_forms(gold):
    assert grade_choice(r"\boxed{\text{B}}", answered(gold)) == compared("B", True)


def test_the_text_grader_takes_these_forms_for_other_answers():
    """What the grader of letters is for."""
    assert sum(grade_text(text, answered("B")).correct for text in BOXED) < 15


def test_a_second_try_is_for_texts_without_a_box_that_can_be_read():
    pattern = answer_retry_of("choice").answer
    assert [text for text in BOXED if not re.search(pattern, text, re.DOTALL)] == []
    others = (
        r"\boxed{2}",
        r"\boxed{AB}",
        r"\boxed{\text{Because}}",
        r"\boxed{A or B}",
        r"\boxed{B",
    )
    assert not any(re.search(pattern, text, re.DOTALL) for text in (*WHOLE, *others))


def test_long_texts_take_no_long_time():
    parts = ("\\boxed{", "B. ", "(B) ", "####", " ", "<think>", "\\ ", "~", "{", "'", "so ", "$1,0")
    parts += ("answer is ", "Answer: B\n", "the final final best ", "i would choose ", "\n")
    for part in parts:
        choice_of(part * 100_000)
        choice_of("\\boxed{B}" + part * 100_000 + "\\boxed{B}")
