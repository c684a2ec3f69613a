"""Grading of programs: which one, by which tests, and how a failure is told."""

import collections
import decimal
import fractions
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.data.code_tests import CodeTests
from rmas_jax.data.rows import DataError
from rmas_jax.evaluation import graders
from rmas_jax.evaluation.graders import GRADERS, check_golds, find_grader
from rmas_jax.evaluation.graders.code import grade_code, program_of
from rmas_jax.evaluation.graders.code_runs import CodeLimits, is_output, is_value, run_tests
from rmas_jax.evaluation.graders.code_values import decode, encode
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict
from rmas_jax.tools import SandboxError

LIMITS = CodeLimits(test_s=1, total_s=60, memory_bytes=512 << 20)


def stdin(*pairs):
    tests = [{"input": given, "output": wanted, "testtype": "stdin"} for given, wanted in pairs]
    return {"public_test_cases": json.dumps(tests), "metadata": "{}"}


def functional(name, *pairs):
    tests = [{"input": given, "output": out, "testtype": "functional"} for given, out in pairs]
    return {"public_test_cases": json.dumps(tests), "metadata": json.dumps({"func_name": name})}


def script(*lines):
    return {"test": "\n".join(lines)}


def graded(program, fields, limits=LIMITS):
    return grade_code(f"```python\n{program}\n```", Example("0", "?", "-", fields=fields), limits)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("First:\n```python\nx = 1\n```\nbetter:\n```py\nx = 2\n```\nDone.", "x = 2"),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1"),
        ("```text\n1\n```", None),
        ("```\nx = 1\n```", "x = 1"),
        ("```Python3\nx = 1\n```\n```c\nint x;\n```", "x = 1"),
        ("~~~python\nx = '```'\n~~~", "x = '```'"),
        ("````python\n```\nx\n````", "```\nx"),
        ("  1. so\n  ```python\n  if x:\n      y\n  ```", "if x:\n    y"),
        ("```python title=a.py\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1"),  # cut off
        ("```python\nx = 1", None),
        ("```\nnever closed\n```python\nx = 1\n```", "x = 1"),
        ("``` python\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n``` ", "x = 1"),
        ("```python\nx = 1\n````", "x = 1"),
        ("```python\n\n```", None),
        ("x = 1", None),
        ("", None),
        ("<think>```python\nx = 1\n```</think>no", None),
        ("<think>```python\nx = 1\n```", None),
        ("<think>\n```python\nx = 1\n```\n</think>\n```python\nx = 2\n```", "x = 2"),
        ("`x = 1`", None),
    ],
)
def test_the_program_is_the_last_finished_block_of_python(text, program):
    assert program_of(text) == program


@pytest.mark.parametrize("line", ["```" + "a" * 10**6 + "`", "```\n" * 10**5, " " * 10**6 + "```"])
def test_long_texts_are_read_in_a_moment(line):
    start = time.process_time()
    program_of(f"{line}\n```python\nx\n```")
    assert time.process_time() - start < 2


def test_a_text_without_a_program_is_unparsed():
    verdict = grade_code("No idea.", Example("0", "?", "-", fields=stdin(("", "1"))), LIMITS)
    assert verdict == Verdict(None, Outcome.UNPARSED)


SUM = stdin(("1 2\n", "3\n"), ("3 4\n", "7"), ("5 6\n", "424242"))
ADD = functional("add", ("[1]\n[2]", "[1, 2]"), ("[3]\n[4]", "[3, 4]"), ("[5]\n[6]", "[424242]"))
ASSERTS = script("assert add(1, 2) == 3", "assert add(3, 4) == 7", "assert add(5, 6) == 424242")
READ = "a, b = map(int, input().split())\n"


@pytest.mark.parametrize(
    ("fields", "program", "outcome", "reason"),
    [
        (SUM, READ + "print(a + b)", "wrong", "test 3: wrong output"),
        (SUM, READ + "print(a + b)\nif a == 3: 1 / 0", "crashed", "test 2: runtime error: Zero"),
        (SUM, READ + "while b == 4: pass\nprint(a + b)", "timeout", "test 2: time limit"),
        (SUM, READ + "bytearray(1 << 30)", "crashed", "test 1: memory limit"),
        (SUM, "print(1", "crashed", "compile error"),
        (SUM, "x = '\\0'\n\0", "crashed", "compile error"),
        (SUM, "class A: pass\n  x", "crashed", "compile error"),
        (SUM, "-" * 100_000 + "1", "crashed", "compile error"),
        (SUM, "raise type('no 424242', (Exception,), {})", "crashed", "runtime error: unknown"),
        (SUM, "import os\nos.kill(os.getpid(), 11)", "crashed", "test 1: runtime error: SIGSEGV"),
        (SUM, "while True: print('x' * 10**6)", "crashed", "test 1: runtime error: OSError"),
        (SUM, "print('x' * (33 << 19))", "wrong", "test 1: wrong output"),
        (ADD, "def add(a, b): return a + b", "wrong", "test 3: wrong output"),
        (ADD, "def sub(a, b): return a + b", "crashed", "no function add"),
        (ADD, "def add(a): return a", "crashed", "test 1: runtime error: TypeError"),
        (ADD, "def add(a, b): return add(a, b)", "crashed", "test 1: runtime error: Recursion"),
        (ADD, "class Solution:\n  def add(self, a, b): return a + b", "wrong", "test 3: wrong"),
        (ASSERTS, "def add(a, b): return a + b", "wrong", "test 3: wrong output"),
        (ASSERTS, "def add(a, b): return a + b / (b - 4)", "wrong", "test 1: wrong output"),
        (ASSERTS, "def add(a, b): return a + 2 if b < 4 else b / 0", "crashed", "test 2: runtime"),
        (ASSERTS, "def add(a, b):\n  while 1: pass", "timeout", "test 1: time limit"),
        (ASSERTS, "def add(a, b): return bytearray(1 << 30)", "crashed", "test 1: memory limit"),
        (ASSERTS, "def add(a, b): return 'x' * (70 << 20)", "wrong", "test 1: wrong output"),
        (ASSERTS, "def sub(a, b): return a - b", "crashed", "no function add"),
        (ASSERTS, "def add(a, b) return a", "crashed", "compile error"),
        (ASSERTS, "1 / 0", "crashed", "test 1: runtime error: ZeroDivisionError"),
        (stdin(), "print(1)", "crashed", "no tests"),
        ({}, "print(1)", "crashed", "no tests"),
        (script("x = 1"), "print(1)", "crashed", "no tests"),
        (script("assert 1 == 1"), "print(1)", "crashed", "no tests"),
        (script("for x in []: assert f(x)"), "def f(x): return 1", "crashed", "no tests"),
    ],
)
def test_failures_have_a_kind_and_show_no_expected_text(fields, program, outcome, reason):
    verdict = graded(program, fields)
    assert verdict.outcome == outcome
    assert reason in verdict.reason
    assert "424242" not in verdict.reason
    assert verdict.prediction == program


def test_memory_counts_in_all_processes_together():
    program = "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(150 << 20)\n"
    program += "for i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(5)"
    assert graded(program, SUM).reason == "test 1: memory limit"


def test_all_tests_together_have_a_limit_and_waiting_has_one():
    few = CodeLimits(test_s=1, total_s=3)
    tests = stdin(*[("1 2", "3")] * 50)
    assert graded(READ + "import time\ntime.sleep(.5)\nprint(3)", tests, few).reason in {
        f"test {number}: time limit" for number in range(2, 8)
    }
    assert graded("import time\ntime.sleep(60)", SUM, few).reason == "test 1: time limit"


def test_tests_that_cannot_be_run_are_an_error_of_the_data():
    for fields in (script("assert (f(1)"), script("1 / 0", "assert f(1)")):
        with pytest.raises(DataError, match="must be a script of assertions; it raises"):
            graded("def f(x): return x", fields)
    with pytest.raises(DataError, match="a functional test must have") as caught:
        graded("def f(x): return x", functional("f", ("[1", "424242")))
    assert "424242" not in str(caught.value)


ASSERTION = """
import numpy as np
from math import inf
def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False
def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match, f"out: {out}, exp: {exp}"
"""
SETS = ASSERTION.replace(
    "    exact_match = out", "    out, exp = set(out), set(exp)\n    exact_match = out"
)
NOT_NONE = """
def assertion(out, exp, atol):
    if isinstance(out, bool):
        exact_match = out == exp
    else:
        exact_match = exp == (out is not None)
"""
EITHER = """
def _other(x): return x + 1
def assertion(out, exp_0, exp_1, atol):
    assert abs(out - exp_0) <= atol or abs(out - exp_1) <= atol
"""


def mbpp(head, inputs, results, assertion):
    loop = "for i, (inp, exp) in enumerate(zip(inputs, results)):"
    return script(head, f"inputs = {inputs}", f"results = {results}", loop, f"    {assertion}")


FLAT = mbpp(ASSERTION, "[[1.5], [inf]]", "[[1.5, 3.0], [inf, inf]]", "assertion(f(*inp), exp, 0)")
UNION = mbpp(SETS, "[[[1, 2], [2, 3]]]", "[(2,)]", "assertion(f(*inp), exp, 0)")
MATCH = mbpp(NOT_NONE, "[['ab'], ['b']]", "[True, False]", "assertion(f(*inp), exp, 0)")
BOTH = mbpp(EITHER, "[[1], [2]]", "[5, 6]", "assertion(f(*inp), exp, _other(*inp), 0)")
CROSS = script(
    ASSERTION,
    "def ref_func(x): return sorted(x)",
    "inputs = [[[3, 1]], [[]]]",
    "for i, inp in enumerate(inputs):",
    "    assertion(f(*inp), ref_func(*inp), 0)",
)
CHECK = script("def check(candidate):\n    assert candidate(2) == 4", "check(f)")
TYPES = script(
    "import decimal, fractions, collections",
    "a = [{1: (2, {3})}, 1j, b'x', None, True, 2**5000, float('inf'), frozenset([1]), range(3)]",
    "a += [decimal.Decimal('1.50'), fractions.Fraction(1, 3), collections.Counter('aab')]",
    "assert f(a) == a and [type(x) for x in f(a)] == [type(x) for x in a]",
    "assert f(k=1, *[2]) == 2",
)
TEST_LIST = {"test_imports": '["import math"]', "test_list": '["assert math.isclose(f(2), 4.0)"]'}
DIGITS = "9" * 5000
HUGE = script(f"assert f({DIGITS}) == {DIGITS}")  # Python reads no more than 4300 in source text
BUILT_IN = script(ASSERTION, "inputs = [[1, 2]]", "for inp in inputs: assertion(sum(*inp), 3, 0)")


@pytest.mark.parametrize(
    ("fields", "program", "is_right"),
    [
        (FLAT, "def f(x): return [x, 2 * x]", True),
        (FLAT, "def f(x): return [x, 3 * x]", False),
        (FLAT, "def f(x): return [x + 1e-9, 2 * x]", True),
        (FLAT, "def f(x): return [x + 1e-4, 2 * x]", False),
        (FLAT, "def f(x): return (x, 2 * x)", True),
        (FLAT, "def f(x): return x", False),
        (UNION, "def f(a, b): return [x for x in a if x in b]", True),
        (UNION, "def f(a, b): return a + b", False),
        (UNION, "def f(a, b): return {*a} & {*b}", True),
        (UNION, "def f(a, b): return None", False),
        (UNION, "def f(a, b): return (x for x in a if x in b)", True),
        (UNION, "def f(a, b): return (x for x in a)", False),
        (MATCH, "import re\ndef f(x): return re.match('a', x)", True),
        (MATCH, "def f(x): return 'no match'", False),  # upstream accepts anything
        (MATCH, "def f(x): return x == 'ab'", True),
        (MATCH, "def f(x): return x == 'b'", False),
        (BOTH, "def f(x): return x + 1", True),
        (BOTH, "def f(x): return x + 2", False),
        (CROSS, "def f(x): return sorted(x)", True),
        (CROSS, "def f(x): return x", False),
        (CROSS, "def f(x): return x.sort() or x", True),
        (CROSS, "def f(x): return x.sort()", False),
        (CHECK, "def f(x): return x * x", True),
        (CHECK, "def f(x): return x * 3", False),
        (TYPES, "def f(*a, k=0): return a[0]", True),
        (TYPES, "def f(*a, k=0): return k", False),
        (TEST_LIST, "def f(x): return math.sqrt(x) ** 4", True),
        (TEST_LIST, "def f(x): return math.sqrt(x) ** 3", False),
        (HUGE, "def f(x): return x", True),
        (HUGE, "def f(x): return x + 1", False),
        (BUILT_IN, "def sum(a, b): return a + b", True),
        (BUILT_IN, "def sum(a, b): return a - b", False),
        (BUILT_IN, "from operator import add as sum", True),
        (BUILT_IN, "def total(a, b): return a + b", False),
        (stdin(("1 2 3\n", "6\n")), "print(reduce(add, map(int, input().split())))", True),
        (stdin(("1", "1")), "print(0)", False),
        (stdin(("1\n2\n", "3")), "print(sum(map(int, stdin)))", True),
        (stdin(("1\n", "2")), "print(int(open(0).read()))", False),
        (stdin(("", "20000")), "f = lambda n: n and 1 + f(n - 1)\nprint(f(20000))", True),
        (stdin(("", "1")), "if __name__ != '__main__': print(1)", False),
        (functional("gcd", ("4\n6", "2")), "from math import gcd", True),
        (functional("gcd", ("4\n6", "2")), "x = 'known, but not its own'", False),
        (functional("f", ("1", "[[1, 2]]")), "def f(x): return ((1, 2),)", True),
        (functional("f", ("1", '{"1": 2}')), "def f(x): return {1: 2}", False),
        (functional("f", ("1", '{"1": 2}')), "def f(x): return {'1': 2}", True),
        (functional("f", ("1", "[1, 2]")), "def f(x): return {1, 2}", False),
        (functional("f", ('"a"', "null")), "def f(x): return None", True),
        (functional("f", ('"a"', "null")), "def f(x): return ''", False),
    ],
)  # fmt: skip
def test_upstream_formats(fields, program, is_right):
    verdict = graded(program, fields)
    assert verdict.correct is is_right, verdict


@pytest.mark.parametrize(
    ("given", "wanted", "is_equal"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2 3", "1 2\n3", False),
        ("1 2  \n 3", "1 2\n3\n\n", True),
        ("1\n\n2", "1\n2", False),
        ("0.50 1e2", "0.5 100", True),
        ("0.1", "0.10000000000000001", False),
        ("50000000000000000", "50000000000000000.0", True),
        ("50000000000000001", "50000000000000000", False),
        ("Yes", "Yes", True),
        ("yes", "Yes", False),
        ("", "", True),
        ("", "0", False),
        ("-0", "0", True),
        ("sNaN", "NaN", False),
        ("a\r\nb", "a\nb", True),
        ("a  b", "a b", False),
        ("1e999999", "1E+999999", True),
        ("1e999999999999999999999", "1", False),
    ],
)
def test_outputs_compare_by_line(given, wanted, is_equal):
    assert is_output(given, wanted) is is_equal


@pytest.mark.parametrize(
    "reply",
    [{"set": [1]}, {"int": 3}, {"int": "z"}, {"dict": 3}, {"dict": [[[], 1]]}, {"object": ""},
     {"tuple": 5}, {}, {"a": 1, "b": 2}, {"dict": [["k"]]}, "1", None],
)  # fmt: skip
def test_replies_that_no_program_should_make_are_no_value(reply):
    for wanted in (1, [1], {"k": 1}, "x"):
        assert not is_value(reply, wanted)


def test_a_deep_reply_is_no_value():
    deep = wanted = 1
    for _ in range(100_000):
        deep, wanted = [deep], {"tuple": wanted}
    assert not is_value(deep, [1])
    assert not is_value(wanted, [1])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.fractions()
    | st.decimals(allow_nan=False) | st.integers(10**400, 10**4000),
    lambda x: st.lists(x) | st.lists(x).map(tuple) | st.dictionaries(st.text(), x)
    | st.lists(x).map(collections.deque),
)  # fmt: skip


@given(VALUES)
def test_values_come_back_as_they_were(value):
    plain = json.loads(json.dumps(encode(value)))
    assert decode(plain) == value
    assert repr(decode(plain)) == repr(value)


def test_only_the_content_of_a_value_travels():
    class Equal(list):
        def __eq__(self, other):
            return True

    for value in (Equal([1]), collections.UserList([1]), object(), len, math):
        back = decode(json.loads(json.dumps(encode(value))))
        assert back != [2] and type(back) is not Equal
    point = collections.namedtuple("Point", "x")(1)
    assert decode(encode(point)) == (1,)
    assert decode(encode(decimal.Decimal("NaN"))).is_nan()
    assert [*decode(encode(iter([fractions.Fraction(1, 2)])))] == [fractions.Fraction(1, 2)]


def test_examples_without_tests_are_told_before_the_run(caplog):
    good = Example("0", "?", "-", fields=SUM)
    bad = [Example("1", "?", "-"), Example("2", "?", "-", fields={"public_test_cases": "["})]
    check_golds(GRADERS["code"], {"test": [good, *bad]})
    assert "test: gold answers must be those of rows with tests" in caplog.messages[0]
    with pytest.raises(ConfigError, match="in the row '1'"):
        check_golds(GRADERS["code"], {"test": bad})


def test_the_grader_needs_a_sandbox(monkeypatch):
    assert find_grader("code", where="data.grader") is GRADERS["code"]

    def fail():
        raise SandboxError("no namespaces")

    monkeypatch.setattr(graders, "check_sandbox", fail)
    with pytest.raises(ConfigError, match=r"data\.grader=code: no namespaces"):
        find_grader("code", where="data.grader")


def test_a_program_without_tests_is_not_run():
    assert run_tests("print(1)", CodeTests(), LIMITS).reason == "no tests"
