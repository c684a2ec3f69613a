"""Text methods against plain loops: one item, one agent and one text at a time."""

import dataclasses

import numpy as np
import pytest
from teams import METHOD_PROMPTS, QUESTIONS, build_team, write_naively

from rmas_jax.agents import answers
from rmas_jax.prompts import take
from rmas_jax.rounds import text_channel
from rmas_jax.rounds.schedules import SCHEDULES, longest_chain

MAX_TOKENS = 4
SLOT_WIDTH = 13  # a token that is no text becomes three bytes in another vocabulary


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))[0]


@pytest.fixture(scope="module")
def members(team):
    """So many ids end a text that some texts are shorter than others."""
    return {
        role: dataclasses.replace(member, end_tokens=tuple(range(0, len(member.tokenizer), 3)))
        for role, member in team.members.items()
    }


@pytest.fixture(scope="module")
def writer(team, members):
    """Function that makes the plain writer of one question by a method's prompts."""

    def of(method, question):
        def write(role, texts, *, later, max_tokens=MAX_TOKENS):
            return write_naively(
                team,
                role,
                question,
                dict.fromkeys(team.system.topology.order, "") | texts,
                later=later,
                ends=members[role].end_tokens,
                max_tokens=max_tokens,
                slot_width=SLOT_WIDTH,
                prompt=METHOD_PROMPTS[method][role],
            )

        return write

    return of


def encode(team, method, questions=QUESTIONS):
    return team.encode(questions, slot_width=SLOT_WIDTH, templates=METHOD_PROMPTS[method])


def mixture_naively(write, rounds):
    """All texts with their tokens, and the sequential steps."""
    layer, found, steps = {}, [], 0
    for index in range(rounds - 1):
        written = {
            role: write(role, layer, later=index > 0) for role in ("planner", "critic", "solver")
        }
        layer = {role: text for role, (text, _) in written.items()}
        found += written.values()
        steps += max(count for _, count in written.values())
    answer = write("solver", layer, later=rounds > 1)
    return [*found, answer], steps + answer[1]


def textgrad_naively(write, rounds):
    """All texts with their tokens, and the sequential steps."""
    draft = write("solver", {}, later=False)
    found, steps = [draft], draft[1]
    for _ in range(rounds - 1):
        read = {"solver": draft[0]}
        feedback = {role: write(role, read, later=True) for role in ("planner", "critic")}
        texts = {role: text for role, (text, _) in feedback.items()}
        draft = write("solver", read | texts, later=True)
        found += [*feedback.values(), draft]
        steps += max(count for _, count in feedback.values()) + draft[1]
    return found, steps


def refine_naively(write, budget, max_tokens):
    """All drafts and the answer with their tokens."""
    draft, found = "", []
    while left := budget - sum(count for _, count in found):
        text, count = write(
            "solver", {"solver": draft}, later=bool(found), max_tokens=min(left, max_tokens)
        )
        whole, needed = write("solver", {"solver": draft}, later=bool(found), max_tokens=max_tokens)
        if not found or needed == count:  # the budget did not cut it
            assert not found or whole == text
            draft = text
        found.append((text, count))
    return [*found, write("solver", {"solver": draft}, later=bool(found))]


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "naively"), [("mixture_of_agents", mixture_naively), ("textgrad", textgrad_naively)]
)
def test_it_is_the_plain_loop(team, members, writer, method, naively, rounds):
    topology, schedule = team.system.topology, SCHEDULES[method]
    prompt, messages = text_channel.listen(
        topology,
        members,
        encode(team, method),
        rounds=rounds,
        max_tokens=MAX_TOKENS,
        schedule=schedule,
    )
    answer = answers.write_texts(members["solver"], prompt, max_tokens=MAX_TOKENS)
    steps = longest_chain(
        schedule(topology, rounds), [*(m.tokens for m in messages), answer.tokens]
    )
    tokens = sum(m.tokens for m in messages) + answer.tokens
    for i, question in enumerate(QUESTIONS):
        expected, longest = naively(writer(method, question), rounds)
        found = [
            *((m.texts[i], m.tokens[i]) for m in messages),
            (answer.texts[i], answer.tokens[i]),
        ]
        assert found == expected
        assert (steps[i], tokens[i]) == (longest, sum(count for _, count in expected))
    assert rounds == 1 or (steps < tokens).all()  # agents side by side


def refine(team, members, budget, max_tokens=MAX_TOKENS, rows=slice(None)):
    prompts = take(encode(team, "self_refinement")["solver"], rows)
    prompt, messages = text_channel.refine(
        members["solver"], prompts, budget=budget, max_tokens=max_tokens
    )
    return answers.write_texts(members["solver"], prompt, max_tokens=MAX_TOKENS), messages


@pytest.mark.parametrize(
    ("budget", "max_tokens"), [(0, 4), (1, 4), (3, 4), (9, 4), (10, 3), (23, 4)]
)
def test_drafts_take_exactly_the_budget_and_are_those_of_the_plain_loop(
    team, members, writer, budget, max_tokens
):
    answer, messages = refine(team, members, budget, max_tokens)
    for i, question in enumerate(QUESTIONS):
        drafts = [(m.texts[i], m.tokens[i]) for m in messages if m.tokens[i]]
        write = writer("self_refinement", question)
        assert [*drafts, (answer.texts[i], answer.tokens[i])] == refine_naively(
            write, budget, max_tokens
        )
        assert sum(count for _, count in drafts) == budget
    assert budget < 10 or len({tuple(m.tokens) for m in messages}) > 1  # drafts end early


def test_items_refine_independently_of_their_batch(team, members):
    together, messages = refine(team, members, 23)
    counts = np.stack([m.tokens for m in messages])
    assert (counts == 0).any()  # an item has used up its budget before another
    for i in range(len(QUESTIONS)):
        alone, _ = refine(team, members, 23, rows=slice(i, i + 1))
        assert alone.texts == together.texts[i : i + 1]


def test_other_feedback_gives_another_revision(team, members):
    """The control of the plain loops: what is read counts."""
    question = take(encode(team, "textgrad"), slice(1, 2))
    texts = set()
    for feedback in ("", "parcel", "from a to b"):
        prefix = text_channel._prefix(members["solver"], question["solver"], None)
        prompt = text_channel.read_messages(
            members["solver"],
            question["solver"],
            prefix,
            kind=1,
            messages={"solver": ["a"], "planner": [feedback], "critic": ["b"]},
        )
        texts.add(answers.write_texts(members["solver"], prompt, max_tokens=MAX_TOKENS).texts[0])
    assert len(texts) > 1
