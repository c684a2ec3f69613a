"""Lists of random tokens that an agent reads twice."""

from __future__ import annotations

import numpy as np
import pytest
from teams import build_team

from rmas_jax.prompts import TokenRows
from rmas_jax.training.data.encoding import Dialogues, learned_tokens
from rmas_jax.training.data.lists import LIST_TOKENS, encode_lists, with_lists


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))[0].members["planner"].tokenizer


def test_a_list_is_read_twice_and_its_second_copy_is_the_text(tokenizer):
    tokens = np.arange(5, 15)
    lists = encode_lists(tokenizer, tokens, 4)
    (line_end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for row in lists.tokens:
        copy, again = row[-2 * LIST_TOKENS - 1 : -LIST_TOKENS - 1], row[-LIST_TOKENS:]
        np.testing.assert_array_equal(copy, again)
        assert row[-LIST_TOKENS - 1] == line_end
        before = row[: -2 * LIST_TOKENS - 1].tolist()
        assert before == ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])
    np.testing.assert_array_equal(lists.text_lengths, [LIST_TOKENS] * 4)
    assert len({tuple(row) for row in lists.tokens}) == 4


def test_lists_hold_every_token_about_equally_often_and_are_always_the_same(tokenizer):
    tokens = np.arange(5, 15)
    ids = encode_lists(tokenizer, tokens, 4).text_ids
    counts = np.bincount(ids, minlength=15)
    assert counts[:5].sum() == 0 and np.ptp(counts[5:]) <= 1
    np.testing.assert_array_equal(ids, encode_lists(tokenizer, tokens, 4).text_ids)
    assert set(encode_lists(tokenizer, tokens[:1], 2).text_ids) == {5}


@pytest.mark.parametrize(("rows", "times"), [(None, 8), (np.array([1, 0, 1]), 5)])
def test_texts_are_learned_as_often_as_lists(rows, times):
    """8 tokens in two texts, 13 in three, 64 in the list."""
    texts = Dialogues(TokenRows.of([[9, 1, 1, 1], [9, 9, 2, 2, 2, 2, 2]]), np.array([3, 5]), rows)
    list_tokens = [7] * LIST_TOKENS
    lists = Dialogues(TokenRows.of([[8, 8, *list_tokens]]), np.array([LIST_TOKENS]))
    found = with_lists(texts, lists)
    assert [row.tolist() for row in found.tokens] == [
        [9, 1, 1, 1],
        [9, 9, 2, 2, 2, 2, 2],
        [8, 8, *list_tokens],
    ]
    learned = found.text_ids[learned_tokens(found)].tolist()
    once = [1, 1, 1, 2, 2, 2, 2, 2] if rows is None else [2] * 5 + [1] * 3 + [2] * 5
    assert learned == once * times + list_tokens


def test_many_texts_are_learned_once_each():
    texts = Dialogues(TokenRows.of([[9, 1]] * 1000), np.ones(1000, int))
    lists = Dialogues(TokenRows.of([[8, 7, 7]]), np.array([2]))
    assert len(learned_tokens(with_lists(texts, lists))) == 1002
