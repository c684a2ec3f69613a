"""The first stage that is not finite, and the message that says so."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from rmas_jax.host.errors import MESSAGE_LIMIT, describe
from rmas_jax.host.nonfinite import (
    Fault,
    NonFiniteError,
    earliest_fault,
    first_fault,
    gradient_fault,
)

ORDER = ("planner", "critic", "solver")
EDGES = (("planner", "critic"), ("critic", "solver"), ("solver", "planner"))


def flags(*faults):
    """Of two rounds of four rows; each fault is a round, a row and a role's place."""
    finite = np.ones((2, 4, 3), bool)
    for fault in faults:
        finite[fault] = False
    return finite


def numbers(finite):
    """The first stage that is not finite, by row, -1 where all are."""
    by_row = np.moveaxis(finite, 1, 0).reshape(finite.shape[1], -1)
    return np.where(by_row.all(1), -1, by_row.argmin(1))


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([], None),
        ([(1, 2, 0)], Fault("planner", 1, [2])),
        ([(0, 3, 1), (0, 3, 2), (1, 0, 0)], Fault("critic", 0, [3])),
        ([(0, 3, 1), (0, 1, 1), (0, 2, 2)], Fault("critic", 0, [1, 3])),
    ],
)
def test_the_first_stage_in_the_order_of_rounds_and_roles(faults, expected):
    assert first_fault(ORDER, flags(*faults)) == expected
    assert earliest_fault(ORDER, numbers(flags(*faults))) == expected


def test_a_gradient_is_lost_where_it_was_finite_last():
    norms = {"->".join(edge): np.ones(2) for edge in EDGES}
    assert gradient_fault(ORDER, EDGES, norms) is None
    norms["planner->critic"][:] = np.nan
    assert "critic, round 2: gradient at the vectors from planner" in str(
        gradient_fault(ORDER, EDGES, norms)
    )
    norms["planner->critic"][1] = 1
    norms["solver->planner"][0] = np.inf  # which the planner read in the next round
    assert "planner, round 2: gradient at the vectors from solver" in str(
        gradient_fault(ORDER, EDGES, norms)
    )
    norms["planner->critic"][1] = np.nan
    assert "agent critic, round 2" in str(gradient_fault(ORDER, EDGES, norms))


def test_the_message_names_agent_stage_and_items_and_survives_a_process():
    error = Fault("critic", 0, [1, 3]).error()
    assert str(error).startswith("agent critic, round 1: latents: NaN or infinite numbers; ")
    assert "system.agents.critic" in str(error)
    named = error.inside("evaluation of a, test", ["w", "x", "y", "z"])
    assert str(named).startswith("evaluation of a, test: agent critic, round 1")
    assert "(items 'x', 'z')" in str(named)
    assert str(pickle.loads(pickle.dumps(named))) == str(named)
    long = NonFiniteError("critic", "answer", items=["x" * 10_000] * 100)
    assert "and 97 more" in str(long) and len(describe(long)) < MESSAGE_LIMIT
