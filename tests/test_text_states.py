"""States of a message's text, which M vectors are to leave in the solver's cache."""

import jax.numpy as jnp
import numpy as np
import pytest
from blind_pair import dials, team_of

from experiments.real_agents import messages, text_states
from experiments.real_agents.free_vectors import questions
from experiments.real_agents.text_states import last_tokens, slot_states, states_loss, words_of


@pytest.fixture(scope="module")
def team():
    return team_of(3)


@pytest.fixture(scope="module")
def known(team):
    return messages.read_all(team, questions(dials(), seed=0, items=4), 2)


def tokens_of(team, known):
    member = team.members["solver"]
    return [
        words_of(member.tokenizer, example.fields["message"])
        for example in known.asked.examples[::2]
    ]


def test_thoughts_stand_for_ends_of_equal_parts():
    words = [1, 2, 1, 3]  # ends: 0, 2, 3, 6
    for count, expected in ((1, [6]), (2, [2, 6]), (4, [0, 2, 3, 6])):
        assert last_tokens(words, count)[0].tolist() == expected
    places, there = last_tokens(words, 8)  # a token each, and one too many
    assert places.tolist() == [0, 1, 2, 3, 4, 5, 6, 6] and there.tolist() == [True] * 7 + [False]


def test_the_texts_own_vectors_lack_nothing(team, known):
    words = tokens_of(team, known)
    width = max(sum(map(len, of)) for of in words) + 1
    of_width = messages.with_count(team, width)
    agent, batches = team.agents["solver"], known.batches(of_width)
    texts = text_states.text_states(team, known, width)
    assert [*texts[0].there.sum(1)] == [sum(map(len, of)) for of in words[:2]]
    ids = np.stack([np.resize(np.concatenate(of), width) for of in words])
    for number, (batch, text) in enumerate(zip(batches, texts, strict=True)):
        own = agent.embed(jnp.asarray(ids[2 * number : 2 * number + 2]))
        assert float(states_loss(agent, own, batch, text)) < 1e-6
        assert float(states_loss(agent, own[::-1], batch, text)) > 0.1


def test_keys_are_compared_as_before_their_rotation(team, known):
    """In the first layer they are those of the embedding, wherever it stands in the text."""
    words = tokens_of(team, known)[:2]
    count = len(words[0])
    text = text_states.text_states(team, known, count)[0]
    last = np.array([[word[-1] for word in of] for of in words])
    agent = team.agents["solver"]
    batch = known.batches(messages.with_count(team, count))[0]
    ours = slot_states(agent, agent.embed(jnp.asarray(last)), batch)
    assert any(len(word) > 1 for of in words for word in of)  # so that positions differ
    for a, b in zip(ours, text.states, strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(ours.values[1:]) - text.states.values[1:]).max() > 1e-3


def test_positions_that_are_kept_decide(team, known):
    """With all of them kept answers are those to the text; without any, it has not been sent."""
    width = text_states.texts_of(team, known.asked, 1).ids.shape[1]
    of_width = messages.with_count(team, width)
    texts = text_states.texts_of(team, known.asked, width)
    assert (texts.is_kept == texts.valid).all()
    assert text_states.texts_of(team, known.asked, 4).is_kept.sum() == 4 * 4
    agent, longest = team.agents["solver"], texts.valid.all(1).argmax()  # has no padding
    batch, part = known.batches(of_width)[longest // 2], texts.by_batch(2)[longest // 2]
    rows = slice(2 * (longest % 2), 2 * (longest % 2) + 2)  # its questions

    def losses(is_kept):
        return np.asarray(text_states.score_of_kept(agent, part, is_kept, batch)[0])[rows]

    def expected(present):
        vectors = agent.embed(jnp.asarray(part.ids))
        return np.asarray(messages.answered(team.agents, vectors, batch, present).loss)[rows]

    np.testing.assert_allclose(losses(part.is_kept), expected(None), rtol=2e-5)
    assert np.abs(losses(np.zeros_like(part.is_kept)) - expected(None)).max() > 1e-3
    assert text_states.right_of_kept(team, known, 4).shape == (4, 2)


def test_means_are_over_the_tokens_of_a_part(team, known):
    words = tokens_of(team, known)
    embed = team.agents["solver"].embed
    for count in (2, 4):
        means = text_states.part_means(team, known.asked, count)
        for of, own in zip(words, means, strict=True):
            parts = [np.concatenate(part) for part in np.split(np.array(of, object), count)]
            expected = [np.asarray(embed(jnp.asarray([part]))[0]).mean(0) for part in parts]
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)


def test_a_words_first_token_is_its_target(team, known):
    """As the solver embeds it; a thought beyond the last word has none."""
    words = tokens_of(team, known)
    count = len(words[0]) + 1
    found = text_states.first_tokens(team, known.asked, count)
    assert found.shape == (4, count, team.agents["solver"].width)
    ids = jnp.asarray([[word[0] for word in of] for of in words])
    np.testing.assert_allclose(found[:, :-1], team.agents["solver"].embed(ids), rtol=1e-6)
    assert not found[:, -1].any()
    np.testing.assert_array_equal(text_states.first_tokens(team, known.asked, 2), found[:, :2])


def test_a_words_loss_is_its_distance():
    """1 - cos and the error alike; words that are 0 do not count."""
    words = np.array([[[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])
    loss = text_states.words_loss
    np.testing.assert_allclose(loss(words, words), 0, atol=1e-6)
    np.testing.assert_allclose(loss(np.zeros_like(words), words), 2, rtol=1e-6)
    turned = words[..., ::-1]  # cosines of 0, errors of twice the words' own squares
    np.testing.assert_allclose(loss(turned, words), 1 + 2, rtol=1e-6)
    beyond = np.where(words.any(-1, keepdims=True), words, 7.0)
    np.testing.assert_allclose(loss(beyond, words), 0, atol=1e-6)
