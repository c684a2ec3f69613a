"""The record of an item: its prompt's digest, and what crossed the edges as nearest tokens."""

import hashlib

import jax
import numpy as np
import pytest
from systems import LATENT_STEPS
from teams import QUESTIONS, build_team

from rmas_jax.data import Example
from rmas_jax.evaluation import crossings
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.evaluation.grading import graded_rows
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.evaluation.rows import Measurement
from rmas_jax.prompts import split_template, take
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.trace import trace_rounds

KEY = Measurement("any", 1, "words", "test", 0)
EXAMPLES = [Example(str(i), question, "x") for i, question in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


def answerer_of(team_and_links, name, rounds=2, role=None, links=None, **options):
    team, own = team_and_links
    answering = Answering(max_tokens=3, **options)
    return Answerer(team, links or own, METHODS[name], rounds, answering, role)


def rows_of(answerer, rows=None):
    """Graded items, with the rows of the prompts in one batch."""
    prompts = answerer.team.encode(QUESTIONS, slot_width=answerer.slot_width)
    rows = list(range(len(QUESTIONS))) if rows is None else rows
    answers = answerer.answer(take(prompts, rows), [None])
    return graded_rows(
        KEY, [EXAMPLES[i] for i in rows], lambda text, example: compared(text, False), answers
    )


def digest(team, role, question, *, later, slot):
    """SHA-256 of a whole prompt, tokenised here, with these ids in its slot."""
    member = team.members[role]
    template = member.template.later if later else member.template.first
    ids = []
    for i, part in enumerate(split_template(member.tokenizer, member.template, template)):
        text = part.replace("\ue000question\ue001", question)
        ids += slot if i % 2 else member.tokenizer(text, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "role", "slot"),
    [
        ("recursive_mas", None, [-1] * LATENT_STEPS),
        ("no_latents", None, []),
        ("single_agents", "critic", []),
    ],
)
def test_a_hash_is_of_the_ids_of_the_whole_prompt(team_and_links, name, role, slot):
    answerer = answerer_of(team_and_links, name, 1 if role else 2, role)
    found = [row["prompt_hash"] for row in rows_of(answerer)]
    where = {"later": role is None, "slot": slot}
    team, who = answerer.team, role or "solver"
    assert found == [digest(team, who, question, **where) for question in QUESTIONS]
    assert found == [rows_of(answerer, [i])[0]["prompt_hash"] for i in range(len(QUESTIONS))]
    assert len(set(found)) == len(QUESTIONS)


def test_a_hash_of_text_has_the_message(team_and_links):
    answerer = answerer_of(team_and_links, "recursive_text")
    team = answerer.team
    prompts = team.encode(QUESTIONS, slot_width=answerer.slot_width)
    message = answerer.listen(prompts).messages[-1]
    assert message.role == "critic"
    read = team.members["solver"].tokenizer
    for i, row in enumerate(rows_of(answerer)):
        slot = read(message.texts[i], add_special_tokens=False)["input_ids"]
        how = {"later": True, "slot": slot[: answerer.slot_width] if message.texts[i] else []}
        assert row["prompt_hash"] == digest(team, "solver", QUESTIONS[i], **how)


def test_latents_do_not_change_a_hash_but_their_number_does(team_and_links):
    other = jax.tree.map(lambda p: -p, team_and_links[1])
    ours, theirs = (
        [row["prompt_hash"] for row in rows_of(answerer_of(team_and_links, "recursive_mas", **how))]
        for how in ({}, {"links": other})
    )
    without = [row["prompt_hash"] for row in rows_of(answerer_of(team_and_links, "no_latents"))]
    assert ours == theirs and not set(ours) & set(without)


def nearest(team, role, vectors, count):
    """Nearest tokens by cosine [M][k], in numpy."""
    table = np.asarray(team.agents[role].embedding_table(), np.float64)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    order = np.argsort(-(vectors.astype(np.float64) @ table.T), axis=-1, kind="stable")
    return [[team.members[role].tokenizer.decode([i]) for i in row[:count]] for row in order]


@pytest.mark.parametrize("name", ["recursive_mas", "shuffled_latents"])
def test_what_crossed_is_shown_as_tokens_of_the_receiver(team_and_links, name):
    rounds, count = 2, 3
    answerer = answerer_of(team_and_links, name, rounds, nearest_tokens=count)
    team, system = answerer.team, answerer.system
    rows = rows_of(answerer)
    prompts = team.encode(QUESTIONS, slot_width=LATENT_STEPS)
    channel = answerer.channel
    assert isinstance(channel, LatentChannel)
    if name == "recursive_mas":
        trace = trace_rounds(system, team.agents, channel, prompts, rounds=rounds)
        for i, row in enumerate(rows):
            assert set(row["crossed"]) == {"planner->critic", "critic->solver", "solver->planner"}
            assert list(row["crossed"]["solver->planner"]) == ["2"]  # feedback arrives later
            for stage in trace.stages:
                for edge, vectors in stage.sent.items():
                    sender, receiver = edge.split("->")
                    arrives = stage.round + 1 + (sender == "solver")
                    shown = row["crossed"][edge][str(arrives)]
                    assert shown == nearest(team, receiver, vectors[i], count)
        assert rows[0]["crossed"] != rows[1]["crossed"]
    else:  # the first message: the true one of the item before
        true = rows_of(answerer_of(team_and_links, "recursive_mas", rounds, nearest_tokens=count))
        first = [row["crossed"]["planner->critic"]["1"] for row in rows]
        assert first == [true[i - 1]["crossed"]["planner->critic"]["1"] for i in range(len(rows))]


def test_long_messages_are_sampled_and_large_batches_split(team_and_links, monkeypatch):
    answerer = answerer_of(team_and_links, "recursive_mas", nearest_tokens=2)
    whole = rows_of(answerer)
    monkeypatch.setattr(crossings, "COSINES", 4 * 37)  # blocks of few vectors
    assert [row["crossed"] for row in rows_of(answerer)] == [row["crossed"] for row in whole]
    monkeypatch.setattr(crossings, "MAX_POSITIONS", 2)
    for row, of_all in zip(rows_of(answerer), whole, strict=True):
        for edge, by_round in row["crossed"].items():
            for number, shown in by_round.items():
                every = of_all["crossed"][edge][number]
                assert shown == [every[0], every[-1]] and len(every) == LATENT_STEPS


def test_nothing_is_recorded_unasked_or_where_no_vector_crosses(team_and_links):
    assert "crossed" not in rows_of(answerer_of(team_and_links, "recursive_mas"))[0]
    for name in ("no_latents", "recursive_text"):
        answerer = answerer_of(team_and_links, name, nearest_tokens=2)
        assert "crossed" not in rows_of(answerer)[0]


def test_tokens_are_found_after_the_answer_and_once(team_and_links, monkeypatch):
    calls = []
    found = crossings.crossed_tokens

    def counted(*args, **options):
        calls.append(options)
        return found(*args, **options)

    monkeypatch.setattr("rmas_jax.evaluation.listening.crossed_tokens", counted)
    answerer = answerer_of(team_and_links, "recursive_mas", nearest_tokens=2)
    prompts = answerer.team.encode(QUESTIONS, slot_width=LATENT_STEPS)
    answers = answerer.answer(prompts, [None, None])
    assert not calls  # seconds are of the answers alone
    answers.crossed()
    answers.crossed()
    assert len(calls) == 1
