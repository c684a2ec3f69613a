"""Tests of programs, from columns of MBPP+ and LiveCodeBench."""

import base64
import contextlib
import json
import os
import pickle
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmas_jax.data import code_tests
from rmas_jax.data.code_tests import (
    Case,
    CodeTests,
    pickled_text,
    read_code_tests,
    read_private_tests,
)
from rmas_jax.data.rows import DataError

CASES = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]


def packed(value, protocol=4):
    """As LiveCodeBench writes its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def case(given, wanted, kind="functional"):
    return {"input": given, "output": wanted, "testtype": kind}


def test_tests_of_livecodebench_are_the_public_and_the_private_ones():
    fields = {
        "public_test_cases": json.dumps([case("[1]\n2", "3")]),
        "private_test_cases": packed(json.dumps([case("[4]\n5", "9")])),
        "metadata": '{"func_name": "add"}',
    }
    assert read_code_tests(fields) == CodeTests((Case("[1]\n2", "3"), Case("[4]\n5", "9")), "add")
    fields = {"public_test_cases": json.dumps(CASES), "metadata": "{}"}
    assert read_code_tests(fields) == CodeTests((Case("1 2\n", "3\n"),))


def test_the_script_of_mbpp_comes_before_its_list():
    fields = {"test_imports": '["import math"]', "test_list": '["assert f(1)", "assert f(2)"]'}
    assert read_code_tests(fields).script == "import math\nassert f(1)\nassert f(2)"
    assert read_code_tests(fields | {"test": "assert f(3)"}).script == "assert f(3)"
    for nothing in ({}, {"test": " "}, {"public_test_cases": "[]", "private_test_cases": ""}):
        assert read_code_tests(nothing) == CodeTests()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"public_test_cases": "[1"}, "public_test_cases: must be JSON, got "),
        ({"public_test_cases": "[[]]"}, "public_test_cases: test 1 must have input and output"),
        ({"public_test_cases": "7"}, "public_test_cases: test 1 must have input and output"),
        ({"public_test_cases": json.dumps([*CASES, {"input": "SECRET"}])}, ": test 2 must have"),
        ({"public_test_cases": json.dumps([case("", "", "other")])}, "testtype, stdin or"),
        ({"public_test_cases": json.dumps([case("1", "2")])}, "metadata: must have func_name"),
        ({"public_test_cases": "[]", "metadata": '{"func_name": 3}'}, "func_name must be text"),
        ({"test_list": '{"a": 1}'}, "test_list: must be a list of texts"),
        ({"private_test_cases": "é"}, "private_test_cases: must be base64 of zlib data"),
        ({"private_test_cases": "QUJD"}, "private_test_cases: must be base64 of zlib data"),
        ({"private_test_cases": packed("x")[:-8]}, "that is cut off"),
        ({"private_test_cases": packed("[1")}, "private_test_cases: must be JSON, got "),
        ({"private_test_cases": packed([CASES])}, "must be the pickle of one text"),
        ({"private_test_cases": "[" * 100_000}, "must be JSON, got maximum recursion depth"),
    ],
)
def test_unusable_fields_are_named_without_their_tests(fields, message):
    with pytest.raises(DataError, match=r"\A(public|private|test|meta)") as caught:
        read_code_tests(fields)
    assert message in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_pickle_of_one_text_is_read_in_every_binary_protocol(protocol):
    for text in ("", "x", "é" * 300, "z" * 70_000):
        assert pickled_text(pickle.dumps(text, protocol)) == text


class Call:
    """A pickle of it runs a command where it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    "value", [Call(), ["x"], ("x", "y"), {"x": "y"}, 7, b"x", None, os.mkdir, "\ud800"]
)
def test_a_pickle_of_anything_else_is_refused_and_not_run(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="must be the pickle of one text, got "):
        pickled_text(pickle.dumps(value))
    assert not any(tmp_path.iterdir())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_text_or_refused(raw):
    with contextlib.suppress(DataError):
        assert isinstance(pickled_text(raw), str)


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.data())
def test_a_damaged_pickle_is_a_text_or_refused(text, data):
    raw = bytearray(pickle.dumps(text, data.draw(st.integers(1, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with contextlib.suppress(DataError):
        assert isinstance(pickled_text(bytes(raw)), str)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters()))))
def test_what_is_packed_is_read(pairs):
    tests = [case(given, wanted, "stdin") for given, wanted in pairs]
    assert read_private_tests(packed(json.dumps(tests))) == tests


@settings(max_examples=50)
@given(st.text("ABCabc012+/= \n", max_size=60).filter(str.strip))
def test_any_text_is_tests_or_refused(text):
    with pytest.raises(DataError):
        read_private_tests(text)


def test_a_bomb_fills_no_memory(monkeypatch):
    monkeypatch.setattr(code_tests, "MAX_BYTES", 1 << 20)
    bomb = base64.b64encode(zlib.compress(bytes(200 << 20), 9)).decode()
    tracemalloc.start()
    with pytest.raises(DataError, match="is above 1048576 bytes"):
        read_private_tests(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
