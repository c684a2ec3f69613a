"""Lists of random tokens that an agent reads twice."""

from __future__ import annotations

import numpy as np
import pytest
from teams import build_team

from rmas_jax.training.data.lists import LIST_TOKENS, encode_lists


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
