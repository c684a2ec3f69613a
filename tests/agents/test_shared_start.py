"""A start that all prompts share is read once: the same numbers, and fewer positions to read."""

import dataclasses

import jax
import numpy as np
import pytest
from systems import CONFIGS, LINEAR, random_agent

from rmas_jax.agents.reading import PromptInput, SharedStart, read_body, read_prefix, read_start
from rmas_jax.prompts import left_pad

START = [3, 1, 4, 1, 5]
ROWS = ([9, 2], [], [6, 5, 3, 5], [2, 7, 1, 8, 2, 8])  # the last one begins in another way
HAS_START = np.array([True, True, True, False])
BODY = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int32)
CASES = {**CONFIGS, "hybrid": LINEAR}


def read(agent, rows, start=None):
    """The state after prefixes and bodies, the cache, and the FLOPs of the program."""

    @jax.jit
    def both(agent, ids, valid, body, start):
        received = np.zeros((len(ROWS), 0, agent.width), np.float32)
        prefix = read_prefix(agent, ids, valid, start)
        prompt = PromptInput(prefix, body, body >= 0, received, (-1,) * body.shape[1])
        return read_body(agent, prompt)

    arguments = (agent, *left_pad(rows), BODY, start)
    program = both.lower(*arguments).compile()
    hidden, cache = program(*arguments)
    return np.asarray(hidden), cache, program.cost_analysis()["flops"]


@pytest.mark.parametrize("has_soft_prompt", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_whole_prompts(case, has_soft_prompt):
    agent = random_agent(CASES[case], 0)
    if has_soft_prompt:
        vectors = np.random.default_rng(1).normal(size=(2, agent.width)).astype(np.float32)
        agent = agent.replace(soft_prompt=jax.numpy.asarray(vectors))
    whole = [[*START, *row] if there else row for row, there in zip(ROWS, HAS_START, strict=True)]
    expected, plain, _ = read(agent, whole)
    cache = jax.jit(read_start)(agent, np.array([START], np.int32))
    hidden, shared, _ = read(agent, ROWS, SharedStart(cache, HAS_START))
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(shared.next_position, plain.next_position)
    for ours, theirs in zip(*map(jax.tree.leaves, (shared.state, plain.state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    # The control: rows without the start would read otherwise with it.
    other, *_ = read(agent, ROWS, SharedStart(cache, np.ones(4, bool)))
    assert np.abs(other[3] - expected[3]).max() > 1e-2
    np.testing.assert_allclose(other[:3], expected[:3], rtol=1e-5, atol=1e-5)


def test_fewer_positions_are_read():
    agent = random_agent(dataclasses.replace(CONFIGS["planner"], num_layers=2), 0)
    long = START * 8
    whole = [[*long, *row] for row in ROWS]
    _, _, plain = read(agent, whole)
    start = SharedStart(jax.jit(read_start)(agent, np.array([long], np.int32)), np.ones(4, bool))
    _, _, shared = read(agent, ROWS, start)
    assert shared < plain / 3
