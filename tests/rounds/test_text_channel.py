"""Recursive-TextMAS against its definition: one item, one agent and one token at a time."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from teams import QUESTIONS, build_team, write_naively

from rmas_jax.agents import answers
from rmas_jax.prompts import FIRST, LATER, take
from rmas_jax.rounds import text_channel

MAX_TOKENS = 4
SLOT_WIDTH = 13  # a token that is no text becomes three bytes in another vocabulary


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))[0]


@pytest.fixture(scope="module")
def members(team):
    """So many ids end a text that some texts are shorter than others."""
    return with_ends(team, lambda tokenizer: tuple(range(0, len(tokenizer), 4)))


def with_ends(team, ends_of):
    """The members of a team with other end tokens."""
    return {
        role: dataclasses.replace(member, end_tokens=ends_of(member.tokenizer))
        for role, member in team.members.items()
    }


def solve(team, members, prompts, rounds, max_message_tokens=MAX_TOKENS):
    """Messages and answers, and the tokens of both."""
    topology, how = team.system.topology, {"rounds": rounds, "max_tokens": max_message_tokens}
    prompt, messages = text_channel.listen(topology, members, prompts, **how)
    written = answers.write_texts(members[topology.answerer], prompt, max_tokens=MAX_TOKENS)
    tokens = written.tokens + sum(message.tokens for message in messages)
    return SimpleNamespace(messages=messages, answers=written.texts, tokens=tokens)


def solve_naively(team, members, question, rounds, max_message_tokens=MAX_TOKENS):
    """Messages per round, and tokens over all stages."""
    order = team.system.topology.order
    newest, messages, total = dict.fromkeys(order, ""), [], 0
    for r in range(rounds):
        for role in order:
            last = r == rounds - 1 and role == order[-1]
            newest[role], count = write_naively(
                team,
                role,
                question,
                newest,
                later=r > 0,
                ends=members[role].end_tokens,
                max_tokens=MAX_TOKENS if last else max_message_tokens,
                slot_width=SLOT_WIDTH,
            )
            total += count
        messages.append(dict(newest))
    return messages, total


@pytest.mark.parametrize(("rounds", "options"), [(1, {}), (2, {}), (2, {"max_message_tokens": 2})])
def test_it_is_the_plain_exchange_of_texts(team, members, rounds, options):
    found = solve(team, members, team.encode(QUESTIONS, slot_width=SLOT_WIDTH), rounds, **options)
    for i, question in enumerate(QUESTIONS):
        messages, tokens = solve_naively(team, members, question, rounds, **options)
        said = [(m.round, m.role, m.texts[i]) for m in found.messages]
        said.append((rounds - 1, "solver", found.answers[i]))
        assert said == [
            (r, role, text) for r, of in enumerate(messages) for role, text in of.items()
        ]
        assert found.tokens[i] == tokens
    assert len(set(found.tokens.tolist())) > 1  # texts do end early


def test_shuffled_messages_are_those_of_the_previous_item(team, members):
    topology = team.system.topology
    prompts = team.encode(QUESTIONS, slot_width=SLOT_WIDTH)
    how = {"rounds": 2, "max_tokens": MAX_TOKENS}
    _, found = text_channel.listen(topology, members, prompts, **how, is_shuffled=True)
    newest = [dict.fromkeys(topology.order, "") for _ in QUESTIONS]
    expected = []
    for r in range(2):
        for role in topology.order if r == 0 else topology.order[:-1]:
            said = [
                write_naively(
                    *(team, role, question, newest[i - 1]),
                    later=r > 0,
                    ends=members[role].end_tokens,
                    max_tokens=MAX_TOKENS,
                    slot_width=SLOT_WIDTH,
                )[0]
                for i, question in enumerate(QUESTIONS)
            ]
            for i, text in enumerate(said):
                newest[i] = {**newest[i], role: text}
            expected.append((r, role, said))
    assert [(message.round, message.role, message.texts) for message in found] == expected
    own = text_channel.listen(topology, members, prompts, **how)[1]
    assert [message.texts for message in own] != [message.texts for message in found]


def test_a_batch_of_one_is_a_batch_of_many(team, members):
    prompts = team.encode(QUESTIONS, slot_width=SLOT_WIDTH)
    together = solve(team, members, prompts, 2)
    for i in range(len(QUESTIONS)):
        alone = solve(team, members, take(prompts, slice(i, i + 1)), 2)
        assert alone.answers == together.answers[i : i + 1]
        assert alone.tokens == together.tokens[i]


def test_more_rounds_compile_nothing(team, members):
    prompts = team.encode(QUESTIONS, slot_width=SLOT_WIDTH)
    solve(team, members, prompts, 2)
    before = answers.write_jitted._cache_size(), text_channel._read_prefix._cache_size()
    solve(team, members, prompts, 3)
    assert before == (answers.write_jitted._cache_size(), text_channel._read_prefix._cache_size())


def test_without_an_end_truncated_messages_cost_m_steps_each(team):
    never = with_ends(team, lambda tokenizer: (-1,))
    found = solve(
        team, never, team.encode(QUESTIONS, slot_width=SLOT_WIDTH), 2, max_message_tokens=2
    )
    assert found.tokens.tolist() == [5 * 2 + MAX_TOKENS] * len(QUESTIONS)
    assert [message.tokens.tolist() for message in found.messages] == [[2, 2, 2]] * 5


def test_an_agent_alone_reads_nothing_in_its_slot(team, members):
    for role in team.system.topology.order:
        prompt = team.encode(QUESTIONS, slot_width=0)[role]
        alone = text_channel.read_alone(members[role], prompt)
        found = answers.write_texts(members[role], alone, max_tokens=MAX_TOKENS)
        for i, question in enumerate(QUESTIONS):
            nothing = dict.fromkeys(team.system.topology.order, "")
            text, tokens = write_naively(
                team,
                role,
                question,
                nothing,
                later=False,
                ends=members[role].end_tokens,
                max_tokens=MAX_TOKENS,
                slot_width=0,
            )
            assert (found.texts[i], found.tokens[i]) == (text, tokens)


def test_slots_are_filled_per_row(team):
    tokenizer = team.members["planner"].tokenizer
    prompt = team.encode(QUESTIONS, slot_width=3)["planner"]
    messages = {"solver": ["", " parcel", "a to b from a"]}
    slots = np.asarray(prompt.slot_index) >= 0

    ids, valid = text_channel.fill_slots(tokenizer, prompt, LATER, messages)
    assert valid[:, slots].sum(axis=1).tolist() == [0, 1, 3]
    assert tokenizer.decode(ids[1, slots][-1:]) == " parcel"
    assert tokenizer.decode(ids[2, slots]) == tokenizer.decode(
        tokenizer("a to b from a", add_special_tokens=False)["input_ids"][:3]
    )
    np.testing.assert_array_equal(ids[:, ~slots], prompt.body_ids[:, LATER][:, ~slots])

    _, valid = text_channel.fill_slots(tokenizer, prompt, FIRST, messages)
    assert not valid[:, slots].any()  # the planner's first prompt has no slot
    assert not np.any(prompt.body_ids[:, :, slots])  # the prompt itself is as it was


def test_special_tokens_in_a_message_are_only_letters(team):
    tokenizer, prompt = (
        team.members["planner"].tokenizer,
        team.encode(["w"], slot_width=99)["planner"],
    )
    slots = np.asarray(prompt.slot_index) >= 0
    message = f"a {tokenizer.eos_token} b"
    ids, valid = text_channel.fill_slots(tokenizer, prompt, LATER, {"solver": [message]})
    found = ids[0, slots & valid[0]]
    assert tokenizer.decode(found) == message and tokenizer.eos_token_id not in found


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": 1, "max_message_tokens": 0}])
def test_impossible_limits_are_named(team, members, options):
    with pytest.raises(ValueError, match="rounds and max_tokens of a message must be"):
        solve(team, members, team.encode(QUESTIONS, slot_width=2), **options)
