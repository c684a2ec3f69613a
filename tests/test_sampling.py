"""Greedy text, against a loop that reads everything anew for each token."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, cut_at_ends, naive_text

from rmas_jax.agents import read_body, read_prefix
from rmas_jax.prompts import left_pad
from rmas_jax.sampling import speak

ROLES = sorted(CONFIGS)
PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [6], [5, 8, 9])
MAX_TOKENS = 6
NEVER = 1000  # no token of the vocabulary


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="max_tokens")
def _write(system, role, params, ids, valid, ends, *, max_tokens):
    nothing = jnp.zeros((len(ids), 0), jnp.int32)
    hidden, cache = read_body(
        system.models[role],
        params,
        read_prefix(system.models[role], params, nothing, nothing > 0),
        ids=ids,
        valid=valid,
        received=jnp.zeros((len(ids), 0, system.width(role))),
        slot_index=(-1,) * ids.shape[1],
        room=max_tokens - 1,
    )
    return speak(system.models[role], params, hidden, cache, end_tokens=ends, max_tokens=max_tokens)


def write(tiny, role, ends, *, rows=PROMPTS, max_tokens=MAX_TOKENS):
    """Ends enter as an array, so that all sets of three share one compilation."""
    ids, valid = left_pad(rows)
    ends = np.resize(ends, 3)
    return _write(tiny.system, role, tiny.agents[role], ids, valid, ends, max_tokens=max_tokens)


@functools.cache
def endless(tiny, role):
    rows = [tiny.embed(role, ids) for ids in PROMPTS]
    return naive_text(tiny.system.models[role], tiny.agents[role], rows, MAX_TOKENS)


@functools.cache
def ends_of(tiny, role):
    """End tokens at which rows stop at different steps, all before the last."""
    tokens = endless(tiny, role)
    for ends in itertools.product(*tokens[:, 1:-1].tolist()):
        lengths = cut_at_ends(tokens, ends)[1]
        if lengths.max() < MAX_TOKENS and len(set(lengths)) == len(PROMPTS):
            return ends
    raise AssertionError(f"no such tokens in {tokens}")


@pytest.mark.parametrize("role", ROLES)
def test_text_equals_the_naive_greedy_loop(tiny_system, role):
    expected = endless(tiny_system, role)
    assert len(np.unique(expected)) > 4  # no model that repeats itself
    speech = write(tiny_system, role, (NEVER,))
    np.testing.assert_array_equal(speech.tokens, expected)
    np.testing.assert_array_equal(speech.lengths, [MAX_TOKENS] * len(PROMPTS))
    assert not np.any(speech.done) and speech.step == MAX_TOKENS


@pytest.mark.parametrize("role", ROLES)
def test_rows_stop_each_at_its_own_end_and_the_loop_at_the_last(tiny_system, role):
    ends = ends_of(tiny_system, role)
    tokens, lengths = cut_at_ends(endless(tiny_system, role), ends)
    speech = write(tiny_system, role, ends)
    np.testing.assert_array_equal(speech.tokens, tokens)  # zeros after the end
    np.testing.assert_array_equal(speech.lengths, lengths)  # the end token is counted
    assert np.all(speech.done)
    assert speech.step == lengths.max() < MAX_TOKENS


def test_a_row_writes_the_same_alone(tiny_system):
    """Rows that have ended, and pads, have no influence."""
    ends = ends_of(tiny_system, "solver")
    many = write(tiny_system, "solver", ends)
    first = int(np.argmin(many.lengths))  # after its end other rows went on
    alone = write(tiny_system, "solver", ends, rows=PROMPTS[first : first + 1])
    np.testing.assert_array_equal(alone.tokens[0], many.tokens[first])
    assert alone.lengths[0] == many.lengths[first] == alone.step < many.step


def test_a_row_that_never_ends_runs_to_the_maximum(tiny_system):
    tokens = endless(tiny_system, "critic")
    end = next(int(t) for t in tokens[0] if not np.isin(t, tokens[1:]).all())
    speech = write(tiny_system, "critic", (end,))
    expected, lengths = cut_at_ends(tokens, (end,))
    np.testing.assert_array_equal(speech.tokens, expected)
    np.testing.assert_array_equal(speech.done, np.isin(tokens, end).any(axis=1))
    np.testing.assert_array_equal(speech.lengths, lengths)


def test_one_token(tiny_system):
    speech = write(tiny_system, "critic", (NEVER,), max_tokens=1)
    np.testing.assert_array_equal(speech.tokens, endless(tiny_system, "critic")[:, :1])
    assert speech.step == 1
