"""Votes and self-refinement in the driver: the agents' own answers, and what they cost."""

import json

import pytest
from teams import METHOD_PROMPTS, build_team

from rmas_jax.data import Example
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.driver import LoadedBenchmark, evaluate
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.topology import load_topology

LATENT_STEPS, MAX_TOKENS = 2, 3
QUESTIONS = ("a b", "b the", "the parcel", "parcel from", "from to")


def grade(text, example):
    """Right or wrong, as good as at random but the same every time."""
    return compared(text or None, (len(text) + len(example.answer)) % 2 == 0)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    team, links = build_team(tmp_path_factory.mktemp("team"), LATENT_STEPS)
    directory = tmp_path_factory.mktemp("run")
    benchmark = LoadedBenchmark(
        "words",
        "1",
        Grader("words", "lengths", grade, equates=False),
        {"test": [Example(q, q, q.split()[0]) for q in QUESTIONS]},
        {role: member.template for role, member in team.members.items()},
        Answering(max_tokens=MAX_TOKENS),
        method_prompts=METHOD_PROMPTS,
    )
    methods = ["single_agents", "majority_vote", "best_of_agents", "self_refinement"]
    how = {"methods": methods, "rounds": (1, 2), "batch_size": 3, "seeds": (7,), "progress": False}
    evaluate(team, links, links, [benchmark], directory, **how)
    lines = (directory / "items.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of(items, method):
    return [item for item in items if item["method"] == method]


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
