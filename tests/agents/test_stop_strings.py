"""Stop strings as a table: against looking for the strings in the decoded text."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, random_agent

from experiments.embedded.make_tokenizers import STYLES, write_tokenizer
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.stop_strings import stop_table
from rmas_jax.models import load_tokenizer, seal

STRINGS = ("</python>", "</search>", "on>x")
TEXTS = (
    "1 < 2 </python> and",
    "x</pyth</Search>",
    "</py thon></ python>",
    "<</python>",
    "python>x",
)


@pytest.fixture(scope="module", params=STYLES)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(
        request.param, ["a <", "a </", "</python", " </sear", "thon>", "> so"], folder, seed=0
    )
    return load_tokenizer(folder)


def stopped_after(table: np.ndarray, ids: list[int]) -> list[bool]:
    state, out = 0, []
    for token in ids:
        state = table[state, token]
        out.append(bool(state == len(table) - 1))
    return out


def test_a_text_is_stopped_where_it_has_a_string(tokenizer):
    table = stop_table(tokenizer, STRINGS)
    rng = np.random.default_rng(0)
    pieces = ["<", "/", "</", "</python", "thon>", " </sear", "ch>", "x", " ", "python", "PYTHON>"]
    drawn = ["".join(rng.choice(pieces, size=8)) for _ in range(300)]
    seen = set()
    for text in [*TEXTS, *drawn]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for n, stopped in enumerate(stopped_after(table, ids), start=1):
            written = tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False).lower()
            if "\ufffd" in written:  # part of a character, not yet decodable
                continue
            assert stopped == any(string in written for string in STRINGS), (text, written)
            seen.add(stopped)
    assert seen == {True, False}


def test_no_strings_and_empty_ones_are_refused(tokenizer):
    for strings in ((), ("a", "")):
        with pytest.raises(ValueError, match="one or more, none of them empty"):
            stop_table(tokenizer, strings)


# --- In the decode loop: tokens of a vocabulary of 37, and a table made by hand -------------------


@functools.partial(jax.jit, static_argnames="max_tokens")
def write(agent, embeds, limits, stops, *, max_tokens=8):
    hidden, cache = agent.read(embeds, jnp.ones(embeds.shape[:2], bool))
    cache = seal(cache, agent.config, max_tokens - 1)
    return speak(
        agent,
        hidden[:, -1],
        cache,
        end_tokens=(),
        max_tokens=max_tokens,
        limits=limits,
        stops=stops,
    )


def test_rows_stop_each_at_its_own_string_and_limit():
    config = CONFIGS["critic"]
    agent = random_agent(config, 3)
    embeds = jax.random.normal(jax.random.key(0), (3, 4, config.width))
    limits = jnp.array([8, 8, 8])
    never = jnp.zeros((3, config.vocab_size), jnp.int32)
    free = np.asarray(write(agent, embeds, limits, never).tokens)
    # The string is two tokens in a row, those that row 1 writes third and fourth.
    first, second = free[1, 2:4]
    follow = never.at[:, first].set(1).at[1, second].set(2).at[2].set(2)
    state = write(agent, embeds, jnp.array([8, 8, 0]), follow)
    pairs = [
        next((n for n in range(1, 8) if (row[n - 1], row[n]) == (first, second)), 7) for row in free
    ]
    assert pairs[1] <= 3 < pairs[0]
    lengths = np.array([pairs[0] + 1, pairs[1] + 1, 0])
    np.testing.assert_array_equal(state.lengths, lengths)
    kept = np.arange(8)[None] < lengths[:, None]
    np.testing.assert_array_equal(state.tokens, np.where(kept, free, 0))
    cut = write(agent, embeds, jnp.array([5, 1, 2]), never)
    np.testing.assert_array_equal(cut.lengths, [5, 1, 2])
    assert int(cut.step) == 5  # the loop ends with its longest row


def test_an_id_behind_the_tokenizers_last_adds_nothing(tokenizer):
    """Published models pad their vocabulary: logits are wider than the table."""
    padded = max(tokenizer.get_vocab().values()) + 3
    text = tokenizer("x <", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*text, padded]) == tokenizer.decode(text)

    config = CONFIGS["critic"]
    agent = random_agent(config, 3)
    embeds = jax.random.normal(jax.random.key(0), (3, 4, config.width))
    limits = jnp.array([8, 8, 8])
    free = write(agent, embeds, limits, jnp.zeros((3, config.vocab_size), jnp.int32)).tokens
    first = int(free[0, 0])
    # The last column stops at once; the first token follows it.
    narrow = jnp.zeros((2, first), jnp.int32).at[0, first - 1].set(1).at[1].set(1)
    wide = jnp.zeros((2, config.vocab_size), jnp.int32).at[:, :first].set(narrow).at[1].set(1)
    ours = write(agent, embeds, limits, narrow)
    expected = write(agent, embeds, limits, wide)
    assert int(expected.lengths[0]) > 1
    np.testing.assert_array_equal(ours.lengths, expected.lengths)
    np.testing.assert_array_equal(ours.tokens, expected.tokens)
