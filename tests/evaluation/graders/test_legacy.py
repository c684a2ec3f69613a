"""Upstream's lenient comparison: what it accepts, and that it only stands beside a verdict."""

import pytest

from rmas_jax.config import load_config
from rmas_jax.data import Example
from rmas_jax.evaluation.graders import GRADERS, check_golds, with_legacy
from rmas_jax.evaluation.graders.legacy import agrees, boxed
from rmas_jax.evaluation.graders.verdict import Outcome
from rmas_jax.evaluation.settings import with_defaults
from rmas_jax.runs.benchmarks import load_benchmarks
from rmas_jax.runs.resolve import find_data
from rmas_jax.team_texts import load_team_texts

# Type of task, gold answer, a text that agrees, and one that does not.
PAIRS = [
    ("math", "1.8", r"\boxed{1.2}", r"\boxed{2.8}"),
    ("math", r"\frac{4}{5}", r"\boxed{\frac{1}{2}}", r"\boxed{\frac{3}{2}}"),
    ("math", "+1", r"\boxed{-1}", r"\boxed{-2}"),
    ("math", "12 years", r"\boxed{12 dollars}", r"\boxed{13 years}"),
    ("math", "7", "First 7 + 5 = 12, so 12.", "First 5 + 7 = 12, so 7."),
    ("math", r"\left( 3, x \right)", r"\boxed{(3,x)}", r"\boxed{(4,x)}"),
    ("math", r"\text{Evelyn}", r"\boxed{Evelyn}", r"\boxed{Eve}"),
    ("math", "x + y", r"\boxed{x+y}", r"\boxed{x-y}"),
    ("math", "3x2.5", r"\boxed{32}", r"\boxed{23}"),
    ("math", "#### 72", "72", "73"),
    ("math", r"\frac{1}{0}", r"\boxed{1}", r"\boxed{0}"),
    ("math", "7", r"<think>\boxed{8}</think>\boxed{7}", r"<think>\boxed{7}"),
    ("choice", "B", r"\boxed{B}", r"\boxed{C}"),
    ("choice", "A", "I cannot tell", "B"),
    ("choice", "Paris", "I cannot tell", "B"),
    ("choice", "B", "The correct option is (B).", "The correct option is (C)."),
    ("choice", "B", "Final Choice: A\nFinal Choice: B", "Final Choice: B\nFinal Choice: A"),
    ("choice", "B", r"\boxed{42}, Final Answer: B", r"\boxed{42}"),
    ("choice", "B", "B. Paris", "Paris"),
    ("choice", "A", "<think>B", "<think>A</think>B"),
    ("search", "The Beatles", "beatles!", "It is The Beatles"),
    ("search", "May 5, 1990", "1990-05-05", "1990-05-06"),
    ("free", "Paris", r"\boxed{\text{x}} or \boxed{PARIS}", r"\boxed{Rome}"),
    (None, "yes", "Yes", "no"),
]


@pytest.mark.parametrize(("task_type", "gold", "alike", "other"), PAIRS)
def test_known_pairs(task_type, gold, alike, other):
    assert agrees(alike, gold, task_type) and not agrees(other, gold, task_type)


def test_boxes_on_one_line_with_braces_inside_merge():
    two = r"\boxed{\sqrt{2}} and \boxed{\sqrt{3}}"
    assert boxed(two) == r"\sqrt{2}} and \boxed{\sqrt{3}"
    assert boxed(two.replace(" and ", "\n")) == r"\sqrt{3}"
    assert boxed(rf"\boxed{{3}}, so {two}") == "3"
    assert boxed(r"\boxed{3") is boxed("3") is None


def test_it_stands_beside_the_strict_verdict_and_changes_nothing_of_it():
    grader = with_legacy(GRADERS["text"], "math")
    example = Example("0", "?", "1.8")
    strict = GRADERS["text"](r"\boxed{1.2}", example)
    verdict = grader(r"\boxed{1.2}", example)
    assert verdict.outcome is Outcome.WRONG and verdict.scores == {"legacy": 1.0}
    assert verdict._replace(scores={}) == strict
    assert grader("2.8", example).scores == {"legacy": 0.0}
    assert grader.name == "text and legacy" and "legacy" not in GRADERS
    check_golds(grader, {"test": [example]})
    both = with_legacy(GRADERS["qa"], "search")("paris", Example("0", "?", "Paris"))
    assert both.scores == {"exact_match": 1.0, "f1": 1.0, "legacy": 1.0}


def test_code_has_none():
    assert with_legacy(GRADERS["text"], "code") is GRADERS["text"]


def test_long_texts_take_no_long_time():
    parts = (
        "\\boxed{",
        "answer ",
        "answer",
        "option is",
        " ",
        "(",
        "\\frac{1",
        "9",
        "}",
        "\n",
        ".",
    )
    for part in parts:
        for task_type in ("math", "choice", "search"):
            agrees(part * 100_000, "7", task_type)
            agrees("answer" + part * 100_000, part * 100_000, task_type)


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_run_reports_it_when_asked(tmp_path, is_asked):
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    for split, path in files.items():
        path.write_text(f'{{"question": "{split}: 1.2 + 0.6?", "answer": "1.8"}}\n')
    named = ", ".join(f"{split}: {path}" for split, path in files.items())
    changes = ["data.dataset=files", f"data.files={{{named}}}", "system.task_type=math"]
    changes += [f"evaluation.legacy={str(is_asked).lower()}"]
    config, methods, chosen = with_defaults(
        load_config("experiments/configs/outer_gain.yaml", changes)
    )
    texts = load_team_texts(config.system)
    dataset = find_data(config, texts.topology, tmp_path, columns=())
    (benchmark,) = load_benchmarks(config, methods, chosen, texts, dataset, tmp_path, columns=())
    verdict = benchmark.grader(r"\boxed{1.2}", benchmark.splits["test"][0])
    assert not verdict.correct and verdict.scores == ({"legacy": 1.0} if is_asked else {})
