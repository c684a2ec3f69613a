"""Votes and self-refinement in the driver: the agents' own answers, and what they cost."""

import pytest
from contest import LATENT_STEPS, MAX_TOKENS, of

from rmas_jax.topology import load_topology


@pytest.fixture(scope="module")
def items(contest, tmp_path_factory):
    methods = ["single_agents", "majority_vote", "best_of_agents", "self_refinement"]
    return contest(tmp_path_factory.mktemp("run"), methods)[1]


def test_a_selection_is_among_the_answers_of_the_agents_alone(items):
    roles = load_topology("sequential").order
    for method in ("majority_vote", "best_of_agents"):
        for found in of(items, method):
            alone = {
                role: next(
                    r
                    for r in of(items, f"single_{role}")
                    if (r["split"], r["id"]) == (found["split"], found["id"])
                )
                for role in roles
            }
            assert [*found["agents"]] == [*roles]
            for role, answer in found["agents"].items():
                assert answer == {column: alone[role][column] for column in answer}
            chosen = found["agents"][found["selected"]]
            assert chosen == {column: found[column] for column in chosen}
            assert found["tokens"] == sum(r["tokens"] for r in alone.values())
            assert found["steps"] == max(r["tokens"] for r in alone.values())
            right = any(r["correct"] for r in alone.values())
            assert method == "majority_vote" or found["correct"] == right


def test_self_refinement_takes_as_many_steps_as_the_latents(items):
    for r in of(items, "self_refinement"):
        before = (3 * r["rounds"] - 1) * LATENT_STEPS
        assert before < r["steps"] == r["tokens"] <= before + MAX_TOKENS
