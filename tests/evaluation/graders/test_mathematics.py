"""The math grader: pairs made by hand, hostile answers, symmetry, and its processes."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation.graders import GRADERS, check_golds, mathematics, workers
from rmas_jax.evaluation.graders.mathematics import grade_math, reads_math
from rmas_jax.evaluation.graders.verdict import Outcome

pytest.importorskip("math_verify", reason="needs the extra eval")

LINES = (Path(__file__).parent / "math_pairs.jsonl").read_text(encoding="utf-8").splitlines()
PAIRS = [json.loads(line) for line in LINES]


def grade(gold, answer):
    """The verdict on an answer in a box."""
    return grade_math(rf"\boxed{{{answer}}}", Example("0", "?", gold))


@pytest.fixture
def hasty(monkeypatch):
    """A pool of one worker that has a second for a pair."""
    pool = workers.Pool(1, wall_s=1.0)
    monkeypatch.setattr(mathematics, "POOL", pool)
    yield pool
    pool.close()


def test_correct_and_wrong_pairs_alternate():
    assert len(PAIRS) >= 550
    assert [pair["verdict"] for pair in PAIRS] == ["correct", "wrong"] * (len(PAIRS) // 2)
    assert all(pair["why"] for pair in PAIRS)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["text"][:40])
def test_pairs(pair):
    verdict = grade_math(pair["text"], Example("0", "?", pair["gold"]))
    assert verdict.correct == (pair["verdict"] == "correct"), verdict
    assert verdict.outcome is not Outcome.CRASHED


@pytest.mark.parametrize("gold", sorted({pair["gold"] for pair in PAIRS}))
def test_gold_answers_are_readable_and_equal_themselves_in_other_clothes(gold):
    assert reads_math(Example("0", "?", gold))
    if "boxed" not in gold:
        assert grade(gold, rf"\displaystyle {gold} ").correct


HOSTILE = {
    "power tower": "9^{9^{9^{9^9}}}",
    "irrational tower": r"\pi^{\pi^{\pi^{\pi^{\pi}}}}",
    "tower of e": "e^{e^{e^{e^{e^e}}}}",
    "huge exponent": "x^{10^{15}}",
    "huge number": "1e999999999",
    "factorial": "(10^9)!",
    "factorials": "((5000)!)!",
    "binomial": r"\binom{10^9}{5 \cdot 10^8}",
    "long sum": r"\sum_{k=1}^{10^9} \frac{\sin k}{k}",
    "long product": r"\prod_{k=1}^{10^9} (k^2+1)",
    "integral": r"\int_0^1 \frac{\sin(x^x)}{\ln(x^2+1)} dx",
    "huge floor": r"\lfloor 10^{1000} \pi \rfloor",
    "nested cis": r"\operatorname{cis}" * 100 + "2",
    "many angles": "+".join(rf"\arctan\frac{{1}}{{{k}}}" for k in range(2, 40)),
    "expansion": "(a+b+c+x)^{400}-(a+b+c+x)^{399}(a+b+c+x+1)",
    "no end of simplification": r"\sqrt{x+\sqrt{x+\sqrt{x+\sqrt{x+\sin(x^x)}}}}",
    "many roots": "+".join(rf"\sqrt{{{p}}}" for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31)),
    "nested brackets": "(" * 900 + "1" + ")" * 900,
    "nested fractions": r"\frac{1}{1+" * 150 + "1" + "}" * 150,
    "nested roots": r"\sqrt" * 300 + "2",
    "nested functions": r"\sin" * 400 + "2",
    "open braces": "{" * 1000,
    "closed braces": "}" * 1000 + "7",
    "unbalanced": r"\frac{1}{2",
    "minus signs": "-" * 1500 + "7",
    "bars": "|" * 1500 + "7",
    "commas": "7" + "," * 1500 + "8",
    "list": ",".join(["7"] * 900),
    "digits": "7" * 1900,
    "repeating": "0." + "12" * 900 + "...",
    "superscripts": "2^" * 900 + "2",
    "plus-minus": r"7\pm " * 300 + "1",
    "nested plus-minus": r"\{\pm " * 40 + "7" + r"\}" * 40,
    "matrix": r"\begin{pmatrix}" + "1&" * 900 + r"1\end{pmatrix}",
    "control characters": "7\x00\x01\x1b[31m",
    "bidirectional": "\u202e7",
    "surrogate": "7\ud800",
    "combining": "7" + "\u0301" * 500,
    "commands": r"\input{/etc/passwd}",
    "code": "__import__('os').system('true')",
    "megabyte of digits": "7" * 2**20,
    "megabyte of boxes": r"\boxed{" * 150_000,
    "megabyte of text": r"\text{" * 170_000 + "7",
    "megabyte of joined boxes": r"\boxed{8} or " * 87_000,
    "megabyte of brackets": "(" * 2**20,
    "megabyte of dollars": "$" * 2**20,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_bounded(name, hasty):
    assert grade("7", "7.0").correct  # the process has started
    start = time.monotonic()
    assert not grade("7", HOSTILE[name]).correct
    if name.startswith("megabyte"):
        assert not grade_math(HOSTILE[name], Example("0", "?", "7")).correct
    assert time.monotonic() - start < 10  # of which a second of comparison
    assert grade("7", "7.0").correct  # and the next pair is graded


def test_the_memory_of_a_process_is_bounded():
    limit_bytes = 300 * 2**20
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    pool = workers.Pool(1, limit_bytes=limit_bytes, wall_s=60.0)
    power = "(a+b+c+x+y+z+w)^{59}"
    try:
        outcome, _ = pool.ask(f"{power}(a+b+c)+{power}(x+y+z+w)", "(a+b+c+x+y+z+w)^{60}")
        assert outcome is Outcome.CRASHED
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        assert peak <= max(before, limit_bytes // 1024)
        assert pool.ask("1/2", "0.5")[0] is Outcome.CORRECT
    finally:
        pool.close()


def test_a_timeout_is_no_answer(hasty):
    verdict = grade("3", HOSTILE["long sum"])
    assert verdict.outcome is Outcome.TIMEOUT and "no reply within 1 s" in verdict.reason
    verdict = grade("3", HOSTILE["power tower"])
    assert verdict.outcome is Outcome.TIMEOUT and "bits" in verdict.reason


def test_a_killed_worker_is_replaced(hasty):
    assert grade("1/2", "0.5").correct
    worker = hasty._idle.queue[0]
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    assert grade("1/2", "0.5").correct
    assert hasty._idle.queue[0].process.pid != worker.process.pid


def test_a_worker_that_dies_over_a_pair_is_a_crash(hasty):
    assert grade("1/2", "0.5").correct
    pid = hasty._idle.queue[0].process.pid
    with ThreadPoolExecutor(1) as threads:
        verdict = threads.submit(grade, "3", HOSTILE["long sum"])
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        assert verdict.result().outcome is Outcome.CRASHED
    assert grade("1/2", "0.5").correct


def test_threads_share_the_pool():
    with ThreadPoolExecutor(8) as threads:
        verdicts = threads.map(grade, ["1/2"] * 40, ["0.5", "0.6"] * 20)
        assert [verdict.correct for verdict in verdicts] == [True, False] * 20


def test_workers_end_with_their_process_and_import_no_jax():
    code = (
        "from rmas_jax.evaluation.graders.workers import POOL\n"
        "print(POOL.ask('1/2', '0.5')[0], POOL._idle.queue[-1].process.pid, flush=True)\n"
        "print(open(f'/proc/{POOL._idle.queue[-1].process.pid}/maps').read().count('jaxlib'))\n"
        "import os; os._exit(0)"  # without cleaning up
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outcome, pid, mapped = run.stdout.split()
    assert (outcome, mapped) == ("correct", "0")
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives its process")


def test_doubts_are_reasons():
    verdict = grade("1", r"\cos 10^{-1000}")
    assert verdict.outcome is Outcome.WRONG and "neither proved equal" in verdict.reason
    verdict = grade("7", r"\frac{1}{")
    assert verdict.outcome is Outcome.UNPARSED and verdict.reason
    verdict = grade("7", "7" * 3000)
    assert verdict.outcome is Outcome.UNPARSED and "at most 2000 characters" in verdict.reason


def test_gold_answers_that_cannot_be_read_are_found_before_the_run(caplog):
    golds = (
        r"\frac{1}{2}",
        r"\text{Evelyn}",
        "#### 72",
        r"\frac{1}{",
        "It is a long story to tell",
    )
    items = [Example(str(i), "?", gold) for i, gold in enumerate(golds)]
    with caplog.at_level(logging.WARNING):
        check_golds(GRADERS["math"], {"test": items})
    (message,) = caplog.messages
    assert message.startswith("test: gold answers must be an expression, or a few words")
    with pytest.raises(ConfigError, match="got 2 others of 2"):
        check_golds(GRADERS["math"], {"test": items[3:]})


def test_the_gold_answers_of_a_benchmark_are_read_in_seconds():
    start = time.monotonic()
    assert (
        sum(reads_math(Example("0", "?", PAIRS[i % len(PAIRS)]["gold"])) for i in range(500)) == 500
    )
    assert time.monotonic() - start < 10


# Expressions that have a value, and that are written in LaTeX.
numbers = st.one_of(
    st.integers(0, 50).map(str),
    st.tuples(st.integers(1, 20), st.integers(1, 20)).map(
        lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"
    ),
    st.integers(0, 99).map(lambda digits: f"1.{digits:02}"),
    st.sampled_from([r"\pi", "e", r"\sqrt{2}", r"\sqrt{5}", "x", "y", "k"]),
)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot "]), inner).map(
            lambda parts: "({}){}({})".format(*parts)
        ),
        inner.map(r"\sqrt{{{}}}".format),
        inner.map("({})^2".format),
        inner.map(r"\frac{{{}}}{{3}}".format),
        inner.map(r"\sin({})".format),
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(expressions)
def test_an_expression_equals_itself_in_another_form_and_not_its_successor(expression):
    assert grade(expression, rf"0 + 1 \cdot ({expression})").correct
    assert grade(expression, rf"\frac{{2({expression})}}{{2}}").correct
    assert grade(expression, rf"({expression}) + 10^{{-30}}").outcome is Outcome.WRONG


@settings(max_examples=150, deadline=None)
@given(expressions, expressions)
def test_equality_is_symmetric(a, b):
    assert grade(a, b).outcome is grade(b, a).outcome
    assert grade(f"({a})+({b})", f"({b})+({a})").correct
    assert grade(rf"\{{{a},{b}\}}", rf"\{{{b},{a}\}}").correct


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from(r"\{}()[]|^_/+-*!%$.,:;&='0123456789xeidk "), max_size=30))
def test_any_text_has_a_verdict_and_none_crashes(text):
    assert grade("7", text).outcome is not Outcome.CRASHED


@pytest.mark.parametrize(
    "text", [r"\boxed{41} or \boxed{42}", r"It is not \boxed{42}.", r"\boxed{42}\boxed{43}"]
)
def test_one_of_several_boxes_is_no_answer(text):
    verdict = grade_math(text, Example("0", "?", "42"))
    assert verdict.outcome is Outcome.UNPARSED
    assert grade_math(r"\boxed{41}? No: it must be \boxed{42}.", Example("0", "?", "42")).correct
