"""A pool whose rows are refilled writes the texts of batches that wait for their longest one."""

import dataclasses

import jax
import numpy as np
import pytest
from followers import DRAWN, FOLLOWS, Follower, Library
from teams import broken, build_team, with_agents

from rmas_jax.agents import pool
from rmas_jax.agents.answers import AnswerRetry
from rmas_jax.evaluation import refill
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.batches import batches
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.evaluation.refill import write_refilled
from rmas_jax.evaluation.rollouts import Work, write_batches
from rmas_jax.host.compilations import compilations
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import declared_width
from rmas_jax.tools import Toolbox

WORDS = ("a", "b", "the", "parcel", "from", "to", "does", "where")
# Several declared widths: the pool runs empty in between.
PAIRS = zip(WORDS, WORDS[3:] + WORDS[:3], strict=True)
QUESTIONS = [f"{a} {b} {a}" * (4 if i % 3 else 1) for i, (a, b) in enumerate(PAIRS)]
QUESTIONS += [f"{q} does ?" for q in QUESTIONS[:5]]
BATCH, MAX_TOKENS = 3, 12
LONGEST_FIRST = sorted(range(len(QUESTIONS)), key=lambda i: -len(QUESTIONS[i]))
BATCHES = list(batches(np.array(LONGEST_FIRST), BATCH))
HOT = SamplingConfig(temperature=2.0, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    """Some words end a text, so that lengths differ."""
    team, links = build_team(tmp_path_factory.mktemp("team"))
    members = {}
    for role, member in team.members.items():
        ends = member.tokenizer(" ".join(WORDS[:3]), add_special_tokens=False)["input_ids"]
        members[role] = dataclasses.replace(member, end_tokens=(*member.end_tokens, *set(ends)))
    return dataclasses.replace(team, members=members), links


def prompts_of(answerer):
    """First row of a batch -> its prompts."""
    return {
        int(batch.rows[0]): answerer.team.encode(
            [QUESTIONS[i] for i in batch.rows],
            slot_width=answerer.slot_width,
            block_width=declared_width,
        )
        for batch in BATCHES
    }


def written(
    write,
    team_and_links,
    name="single_agents",
    role=None,
    team=None,
    seed=5,
    max_tokens=MAX_TOKENS,
    **options,
):
    """(first row, rollout) -> answers; in the order in which they come."""
    team = team or team_and_links[0]
    answering = Answering(max_tokens, **options)
    answerer = Answerer(team, team_and_links[1], METHODS[name], 1 if role else 2, answering, role)
    prompts = prompts_of(answerer)
    works = [Work(batch, range(answering.rollouts)) for batch in BATCHES]
    return {
        (int(one.batch.rows[0]), one.rollout): one
        for one in write(answerer, lambda rows: answerer.listen(prompts[rows[0]]), works, seed=seed)
    }


def texts_of(one):
    """Text, tokens, steps and endings of the items of a rollout."""
    (texts,) = one.answers.rollouts
    steps = np.broadcast_to(one.answers.steps, BATCH)
    columns = (texts.texts, texts.tokens, steps, texts.at_limit, texts.retried)
    return [texts.opening, *(list(column[: one.batch.kept]) for column in columns)]


def all_of(rollouts):
    return {key: texts_of(one) for key, one in rollouts.items()}


@pytest.mark.parametrize(
    ("name", "role", "sampling"),
    [
        pytest.param("single_agents", "planner", HOT, marks=pytest.mark.slow),
        ("single_agents", "critic", SamplingConfig()),
        pytest.param("single_agents", "solver", HOT, marks=pytest.mark.slow),
        # `test_driver_rollouts.py` draws refilled answers of a team.
        pytest.param("recursive_mas", None, HOT, marks=pytest.mark.long),
    ],
    ids=["planner-drawn", "critic-greedy", "solver-drawn", "team-drawn"],
)
def test_texts_are_those_of_batches(team_and_links, name, role, sampling, monkeypatch):
    options = {"name": name, "role": role, "sampling": sampling}
    options |= {"rollouts": 1 if sampling.temperature == 0 else 3}
    plain = all_of(written(write_batches, team_and_links, **options))
    entered, enter = [], refill._Rows.enter
    monkeypatch.setattr(
        refill._Rows, "enter", lambda own, x: (entered.append(own.is_busy), enter(own, x))[1]
    )
    found = written(write_refilled, team_and_links, **options)
    assert all_of(found) == plain
    assert all(one.seconds > 0 for one in found.values())
    if sampling is HOT:
        assert any(entered)  # rows entered while others were being written
        lengths = np.concatenate([texts[2] for texts in plain.values()])
        assert lengths.min() < MAX_TOKENS // 2 and lengths.max() == MAX_TOKENS
        other = written(write_refilled, team_and_links, **options, seed=6)
        assert all_of(other) != plain


def test_later_pieces_of_texts_are_those_of_batches(team_and_links):
    retry = AnswerRetry("parcel", " it is", max_tokens=2)
    options = {"role": "solver", "sampling": HOT, "rollouts": 2, "answer_retry": retry}
    plain = all_of(written(write_batches, team_and_links, **options))
    assert all_of(written(write_refilled, team_and_links, **options)) == plain
    retried = np.concatenate([texts[-1] for texts in plain.values()])
    assert retried.any() and not retried.all()


def test_tool_calls_of_texts_are_those_of_batches(team_and_links, tmp_path):
    team, _ = team_and_links
    solver = dataclasses.replace(Follower(tmp_path, FOLLOWS, end="\n").member, role="solver")
    options = {
        "team": dataclasses.replace(team, members={**team.members, "solver": solver}),
        "role": "solver",
        "sampling": DRAWN,
        "toolbox": Toolbox(search=Library()),
    }
    plain = all_of(written(write_batches, team_and_links, **options))
    assert all_of(written(write_refilled, team_and_links, **options)) == plain
    described = Answering(MAX_TOKENS, toolbox=options["toolbox"]).description
    assert described == f"{Answering(MAX_TOKENS).description}, tool search"
    called = ["<result>" in text for _, texts, *_ in plain.values() for text in texts]
    assert any(called) and not all(called)


@pytest.mark.parametrize("max_tokens", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_shortest_texts(team_and_links, max_tokens):
    options = {"role": "critic", "sampling": HOT, "max_tokens": max_tokens}
    plain = all_of(written(write_batches, team_and_links, **options))
    assert all_of(written(write_refilled, team_and_links, **options)) == plain


def test_every_width_compiles_once(team_and_links):
    how = {"role": "solver", "sampling": HOT}
    jax.clear_caches()
    found = written(write_refilled, team_and_links, **how)
    programs = [program._cache_size() for program in (pool.run, pool.fill, pool.begin)]
    answerer = Answerer(*team_and_links, METHODS["single_agents"], role="solver")
    prompts = [prompt["solver"] for prompt in prompts_of(answerer).values()]
    widths = {(prompt.prefix_ids.shape, prompt.body_ids.shape) for prompt in prompts}
    assert programs == [len(widths)] * 3 and 1 < len(widths) < len(found)
    known = compilations()
    written(write_refilled, team_and_links, **how, seed=6)
    assert compilations() == known


def test_numbers_that_are_not_finite_are_those_of_batches(team_and_links):
    team, _ = team_and_links
    member = team.members["critic"]
    (token,) = member.tokenizer(" to", add_special_tokens=False)["input_ids"]
    team = with_agents(team, {"critic": broken(member.agent, token)})
    errors = []
    for write in (write_batches, write_refilled):
        with pytest.raises(NonFiniteError, match="agent critic, answer: logits") as caught:
            written(write, team_and_links, role="critic", team=team)
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1]) and errors[0].rows == errors[1].rows
    assert all(" to" in QUESTIONS[row] for row in errors[0].rows)
