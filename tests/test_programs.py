"""The programs that matter are those that were committed: see `programs.py`."""

import json

import jax
import jax.numpy as jnp
import pytest
from programs import COMMITTED, changes, describe, described


def test_programs_are_those_that_were_committed():
    committed = json.loads(COMMITTED.read_text())
    if committed["jax"] != jax.__version__:
        pytest.skip(f"digests are of jax {committed['jax']}")
    changed = changes(committed["programs"], described()["programs"])
    assert not changed, "python tests/programs.py renews the digests; say why they changed"


def digest(function):
    return describe(jax.jit(function).lower(jnp.ones(3)))["digest"]


def test_names_do_not_count_and_operations_do():
    @jax.jit
    def inner(x):
        return jnp.sin(x)

    @jax.jit
    def renamed(y):
        return jnp.sin(y)

    def outer(x):
        return inner(x) + 1

    def other(argument):
        return {"result": renamed(argument) + 1}["result"]

    assert digest(outer) == digest(other)
    assert digest(outer) != digest(lambda x: inner(x) + 2)
    assert digest(outer) != digest(lambda x: jnp.cos(x) + 1)


def test_changes_name_the_operations():
    before = {"a": {"digest": "1", "operations": {"add": 2}}, "b": {"digest": "1"}}
    after = {"a": {"digest": "2", "operations": {"add": 1, "mul": 1}}, "c": {"digest": "1"}}
    assert changes(before, after) == ["a: add -1, mul +1", "b: gone", "c: new"]
