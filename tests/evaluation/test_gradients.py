"""Gradient norms per edge and round: what is reported, and that items do not share a scale."""

import numpy as np
import pytest
from teams import QUESTIONS, broken, build_team, with_agents

from rmas_jax.evaluation.gradients import gradient_norms
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.prompts import take
from rmas_jax.training.data.encoding import encode_texts, pad_texts

LATENT_STEPS, ROUNDS = 2, 2


def targets(member, texts):
    """Texts [N][R] of a member as arrays."""
    rows = encode_texts(member.tokenizer, texts, member.end_tokens[0])
    return pad_texts(rows, np.arange(len(rows)), rows.lengths.max(), rounds=len(texts[0]))


def test_norms_are_those_of_items_by_themselves(tmp_path, float64):
    team, links = build_team(tmp_path, LATENT_STEPS)
    team, links = with_agents(team, float64(team.agents)), float64(links)
    prompts, solver = team.encode(QUESTIONS[:2]), team.members["solver"]
    texts = [["the parcel", " from a to b"], ["w", "where"]]
    target = targets(solver, texts)

    def norms(prompts, target):
        rows = gradient_norms(team, links, prompts, target, rounds=ROUNDS)
        return {(row["channel"], row["link"], row["round"]): row["norm"] for row in rows}

    together = norms(prompts, target)
    edges = [("planner->critic", 1), ("planner->critic", 2), ("critic->solver", 1)]
    edges += [("critic->solver", 2), ("solver->planner", 1)]  # the last feedback reaches nothing
    assert set(together) == {(c, *edge) for c in ("latent", "softmax") for edge in edges}
    assert all(norm > 0 for norm in together.values())

    apart = [norms(take(prompts, one), take(target, one)) for one in (slice(0, 1), slice(1, 2))]
    for key, norm in together.items():
        expected = np.sqrt(np.mean([np.square(alone[key]) for alone in apart]))
        assert norm == pytest.approx(expected, rel=1e-6)

    # Only the text of the last round counts.
    texts = [[" b", " from a to b"], [" a", "where"]]
    others = targets(solver, texts)
    assert norms(prompts, others) == pytest.approx(together, rel=1e-6)


def test_an_agent_that_is_not_finite_is_named(tmp_path):
    team, links = build_team(tmp_path, 1)
    team = with_agents(team, {"critic": broken(team.agents["critic"])})
    solver = team.members["solver"]
    target = targets(solver, [["w"]])
    message = "gradient norms, latent channel: agent critic, round 1: latents"
    with pytest.raises(NonFiniteError, match=message):
        gradient_norms(team, links, team.encode(QUESTIONS[:1]), target, rounds=1)
