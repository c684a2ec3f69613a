"""The receivers in a mixture; `test_against_torch` compares every pattern with the definition."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from systems import TinySystem, build_pattern

from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, run_rounds

ROUNDS = 3


@functools.partial(jax.jit, static_argnames="rounds")
def received(system, agents, links, prompts, *, rounds):
    channel = LatentChannel(system, links)
    return run_rounds(system, agents, channel, prompts, Unroll(rounds=rounds)).received


def run(tiny: TinySystem) -> np.ndarray:
    return np.asarray(received(tiny.system, tiny.agents, tiny.links, tiny.prompts(), rounds=ROUNDS))


def test_specialists_of_a_mixture_hear_each_other_only_through_the_summarizer():
    tiny = build_pattern("mixture")
    other = jax.tree.map(lambda x: 1.1 * x, tiny.agents["code"])
    changed = dataclasses.replace(tiny, agents=tiny.agents | {"code": other})
    math, code, science = (
        np.abs(part).max(axis=(1, 2, 3))  # by round
        for part in np.split(run(changed) - run(tiny), 3, axis=2)
    )
    assert code[0] > 0.05 and math[0] == science[0] == 0
    assert math[1] > 1e-3 and science[1] > 1e-3  # in the next round they have heard of it


def test_the_order_of_specialists_changes_nothing():
    tiny = build_pattern("mixture")
    topology = tiny.system.topology
    permuted = dataclasses.replace(topology, order=("science", "math", "code", "summarizer"))
    again = dataclasses.replace(tiny, system=tiny.system.replace(topology=permuted))
    np.testing.assert_allclose(run(again), run(tiny), rtol=1e-5, atol=1e-5)
