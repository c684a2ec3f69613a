"""Greedy text, against a loop that reads everything anew; rules, against transformers; draws."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from systems import CONFIGS, cut_at_ends, naive_text
from transformers.generation import logits_process

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body, read_prefix
from rmas_jax.agents.sampling import (
    GREEDY,
    RowRules,
    apply_rules,
    choose_tokens,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    likeliest,
    row_keys,
    seen_tokens,
    speak,
)
from rmas_jax.models import Decoder, seal
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import left_pad

ROLES = sorted(CONFIGS)
PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [6], [5, 8, 9])
MAX_TOKENS = 6
NEVER = 1000  # no token of the vocabulary


@functools.partial(jax.jit, static_argnames="max_tokens")
def _write(agent, ids, valid, ends, *, max_tokens):
    nothing = jnp.zeros((len(ids), 0), jnp.int32)
    prompt = PromptInput(
        prefix=read_prefix(agent, nothing, nothing > 0),
        ids=ids,
        valid=valid,
        received=jnp.zeros((len(ids), 0, agent.width)),
        slot_index=(-1,) * ids.shape[1],
    )
    hidden, cache = read_body(agent, prompt)
    return speak(agent, hidden, cache, end_tokens=ends, max_tokens=max_tokens)


def write(tiny, role, ends, *, rows=PROMPTS, max_tokens=MAX_TOKENS):
    """Ends enter as an array, so that all sets of three share one compilation."""
    ids, valid = left_pad(rows)
    ends = np.resize(ends, 3)
    return _write(tiny.agents[role], ids, valid, ends, max_tokens=max_tokens)


@functools.cache
def endless(tiny, role):
    rows = [tiny.embed(role, ids) for ids in PROMPTS]
    return naive_text(tiny.agents[role], rows, MAX_TOKENS)


@functools.cache
def ends_of(tiny, role):
    """End tokens at which rows stop at different steps, all before the last."""
    tokens = endless(tiny, role)
    for ends in itertools.product(*tokens[:, 1:-1].tolist()):
        lengths = cut_at_ends(tokens, ends)[1]
        if lengths.max() < MAX_TOKENS and len(set(lengths)) == len(PROMPTS):
            return ends
    raise AssertionError(f"no such tokens in {tokens}")


@pytest.mark.parametrize("role", ROLES)
def test_text_equals_the_naive_greedy_loop(tiny_system, role):
    expected = endless(tiny_system, role)
    assert len(np.unique(expected)) > 4  # no model that repeats itself
    state = write(tiny_system, role, (NEVER,))
    np.testing.assert_array_equal(state.tokens, expected)
    np.testing.assert_array_equal(state.lengths, [MAX_TOKENS] * len(PROMPTS))
    assert not np.any(state.done) and state.step == MAX_TOKENS


@pytest.mark.parametrize("role", ROLES)
def test_rows_stop_each_at_its_own_end_and_the_loop_at_the_last(tiny_system, role):
    ends = ends_of(tiny_system, role)
    tokens, lengths = cut_at_ends(endless(tiny_system, role), ends)
    state = write(tiny_system, role, ends)
    np.testing.assert_array_equal(state.tokens, tokens)  # zeros after the end
    np.testing.assert_array_equal(state.lengths, lengths)  # the end token is counted
    assert np.all(state.done)
    assert state.step == lengths.max() < MAX_TOKENS


def test_a_row_writes_the_same_alone(tiny_system):
    """Rows that have ended, and pads, have no influence."""
    ends = ends_of(tiny_system, "solver")
    many = write(tiny_system, "solver", ends)
    first = int(np.argmin(many.lengths))  # after its end other rows went on
    alone = write(tiny_system, "solver", ends, rows=PROMPTS[first : first + 1])
    np.testing.assert_array_equal(alone.tokens[0], many.tokens[first])
    assert alone.lengths[0] == many.lengths[first] == alone.step < many.step


def test_a_row_that_never_ends_runs_to_the_maximum(tiny_system):
    tokens = endless(tiny_system, "critic")
    end = next(int(t) for t in tokens[0] if not np.isin(t, tokens[1:]).all())
    state = write(tiny_system, "critic", (end,))
    expected, lengths = cut_at_ends(tokens, (end,))
    np.testing.assert_array_equal(state.tokens, expected)
    np.testing.assert_array_equal(state.done, np.isin(tokens, end).any(axis=1))
    np.testing.assert_array_equal(state.lengths, lengths)


def test_one_token(tiny_system):
    state = write(tiny_system, "critic", (NEVER,), max_tokens=1)
    np.testing.assert_array_equal(state.tokens, endless(tiny_system, "critic")[:, :1])
    assert state.step == 1


# --- Rules, against transformers ------------------------------------------------------------------

LOGITS = np.random.default_rng(0).normal(scale=3, size=(5, 40)).astype(np.float32)
TEXT = np.random.default_rng(1).integers(0, 40, (5, 9))
TEXT_VALID = np.arange(9)[None, :] >= np.array([[0], [3], [8], [0], [5]])  # left pads
# Ours -> the classes of transformers, in the order in which `generate` applies them.
RULES = {
    "repetition_penalty": lambda x: logits_process.RepetitionPenaltyLogitsProcessor(
        x, prompt_ignore_length=torch.tensor((~TEXT_VALID).sum(1))
    ),
    "temperature": logits_process.TemperatureLogitsWarper,
    "top_k": logits_process.TopKLogitsWarper,
    "top_p": logits_process.TopPLogitsWarper,
    "min_p": logits_process.MinPLogitsWarper,
}


def ours_and_theirs(logits, **rules):
    seen = seen_tokens(jnp.asarray(TEXT), jnp.asarray(TEXT_VALID), logits.shape[-1])
    sampling = SamplingConfig(**{"temperature": 1.0} | rules)
    expected = torch.tensor(logits)
    for name, build in RULES.items():
        if name in rules:
            expected = build(rules[name])(torch.tensor(TEXT), expected)
    return np.asarray(apply_rules(jnp.asarray(logits), sampling, seen)), expected.numpy()


@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"temperature": 0.6},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.0},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"repetition_penalty": 1.5, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        {"repetition_penalty": 1.1, "temperature": 1.8, "top_k": 12, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
def test_rules_equal_those_of_transformers(rules):
    ours, theirs = ours_and_theirs(LOGITS, **rules)
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert rules == {"top_k": 1000} or np.any(ours != LOGITS)
    assert np.all(np.isfinite(ours).any(axis=1))  # something is left to draw


def test_equal_logits_are_ruled_out_as_in_transformers():
    logits = np.repeat(np.float32([[2, 1, 1, 1, 1, 0, 0, -3]]), 5, axis=0)
    for rules in ({"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.36}, {"top_k": 6, "top_p": 0.7}):
        ours, theirs = ours_and_theirs(logits, **rules)
        np.testing.assert_array_equal(ours, theirs)


def test_rules_that_are_off_leave_no_trace():
    seen = jnp.ones(LOGITS.shape, bool)
    logits = jnp.asarray(LOGITS)
    assert apply_rules(logits, GREEDY, seen) is logits
    assert apply_rules(logits, SamplingConfig(temperature=1.0), seen) is logits
    # Greedy text has no use for rules that keep the likeliest token.
    assert apply_rules(logits, SamplingConfig(top_k=3, top_p=0.5, min_p=0.1), seen) is logits


def test_order_of_the_rules_matters_here():
    """The control of the two combinations above: in another order, other tokens are left."""
    logits = jnp.asarray(LOGITS)
    ours = apply_rules(logits, SamplingConfig(temperature=2.0, top_k=12, top_p=0.8, min_p=0.2))
    other = keep_top_k(keep_top_p(keep_min_p(logits, 0.2), 0.8) / 2.0, 12)
    assert np.any(np.isinf(ours) != np.isinf(other))


# --- Sampled text ---------------------------------------------------------------------------------


def test_draws_follow_the_distribution():
    logits = jnp.asarray(LOGITS[:1, :6] / 3)
    left = apply_rules(logits, SamplingConfig(temperature=1.0, top_k=4))
    keys = row_keys(jax.random.key(0), jnp.arange(4000))
    for step in (0, 7):
        tokens = draw(jnp.repeat(left, 4000, axis=0), keys, step)
        frequency = np.bincount(tokens, minlength=6) / 4000
        expected = np.asarray(jax.nn.softmax(left))[0]
        np.testing.assert_allclose(frequency, expected, atol=0.03)
        assert np.all(frequency[expected == 0] == 0) and np.sum(expected == 0) == 2
    assert np.abs(np.asarray(jax.nn.softmax(logits))[0] - expected).max() > 0.03
    assert np.any(tokens != draw(jnp.repeat(left, 4000, axis=0), keys, 0))  # steps differ


# --- What is paid, and what is refused ------------------------------------------------------------


def traced(sampling, **options):
    """The program of `speak` as text, for two rows of the tiny critic."""
    config = CONFIGS["critic"]
    model = Decoder(config)
    embeds = jnp.zeros((2, 1, config.width))
    params = jax.eval_shape(model.init, jax.random.key(0), embeds, jnp.ones((2, 1), bool))

    def write(agent, embeds):
        ends = {"end_tokens": (1, 2), "max_tokens": 4}
        given = {"sampling": sampling} if sampling else {}
        return speak(agent, embeds[:, 0], agent.empty_cache(2, 3), **ends, **given, **options)

    return str(jax.make_jaxpr(write)(Agent(model, params["params"]), embeds))


def test_greedy_text_pays_for_no_rule():
    greedy = traced(None)
    marks = (" sort[", "top_k[", "random_bits", "threefry", "bool[2,37]")
    assert not any(mark in greedy for mark in marks)
    assert traced(SamplingConfig(top_k=5, top_p=0.3, min_p=0.2)) == greedy
    keys = row_keys(jax.random.key(0), jnp.arange(2))
    assert traced(GREEDY, keys=keys, seen=jnp.ones((2, 37), bool)) == greedy
    paying = traced(SamplingConfig(temperature=0.5, top_k=5, top_p=0.3), keys=keys)
    assert all(mark in paying for mark in marks[:2])
    assert "bool[2,37]" in traced(SamplingConfig(repetition_penalty=1.4))


def test_sampling_without_a_key_for_each_row_is_refused():
    with pytest.raises(ValueError, match=r"keys must be one per row \(2, .*=0.5, got none"):
        traced(SamplingConfig(temperature=0.5))
    with pytest.raises(ValueError, match=r"per row \(2, .*, got shape \(3,\)"):
        traced(SamplingConfig(temperature=0.5), keys=row_keys(jax.random.key(0), jnp.arange(3)))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.3},
    ],
)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_row_ends_at_logits_that_are_not_finite(tiny_system, rules, bad):
    """The second row's second token is one that the agent has no finite embedding of."""
    agent = tiny_system.agents["critic"]
    sampling, keys = SamplingConfig(**rules), row_keys(jax.random.key(0), jnp.arange(3))

    @jax.jit
    def text(agent):
        ids = jnp.asarray([[3, 1], [6, 36], [5, 8]])
        hidden, cache = agent.read(agent.embed(ids), ids >= 0)
        cache = seal(cache, agent.config, MAX_TOKENS - 1)
        how = {"sampling": sampling, "keys": keys}
        return speak(agent, hidden[:, -1], cache, end_tokens=(), max_tokens=MAX_TOKENS, **how)

    def broken(name, where):
        return agent.replace(params=agent.params | {name: agent.params[name].at[where].set(bad)})

    expected = text(agent)
    state = text(broken("embedding", 36))
    assert np.all(expected.finite) and np.all(expected.lengths == MAX_TOKENS)
    assert 36 not in np.asarray(expected.tokens[::2])  # a control: nobody else reads it
    np.testing.assert_array_equal(state.finite, [True, False, True])
    np.testing.assert_array_equal(state.lengths, [MAX_TOKENS, 1, MAX_TOKENS])
    np.testing.assert_array_equal(state.tokens[::2], expected.tokens[::2])

    row = text(broken("unembed_kernel", (4, slice(None))))  # of one sign or the other
    assert not np.all(row.finite)
    np.testing.assert_array_equal(row.finite, row.lengths == MAX_TOKENS)


def test_a_temperature_near_zero_takes_the_likeliest():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 37)), jnp.float32)
    for temperature in (1e-6, 1e-30, 5e-324):
        scaled = apply_rules(logits, SamplingConfig(temperature=temperature, top_p=0.9))
        tokens = draw(scaled, row_keys(jax.random.key(0), jnp.arange(4)), jnp.zeros((), int))
        np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))


@pytest.mark.parametrize("vocabulary", [61, 64, 1000, 3 * 1024, 33 * 96])
def test_the_likeliest_token_is_the_first_of_the_largest(vocabulary):
    rng = np.random.default_rng(vocabulary)
    few = rng.integers(0, 9, (5, vocabulary)).astype(np.float32)  # with many equal ones
    few[1] = -np.inf
    few[2, [vocabulary // 2, vocabulary - 1]] = np.inf
    few[3, vocabulary // 3 :: 7] = np.nan
    few[4] = rng.standard_normal(vocabulary)
    expected = np.argmax(np.nan_to_num(few, nan=np.inf, posinf=np.inf, neginf=-np.inf), axis=-1)
    np.testing.assert_array_equal(jax.jit(likeliest)(few), expected)


RULES_BY_ROW = ((0.0, 1.0), (1.0, 1.0), (0.7, 1.0), (3.0, 0.8), (1.0, 0.1), (0.0, 0.3), (1e-9, 1.0))


def by_row(rules, steps=5):
    """Logits [B, V], keys [B], and the tokens [B, steps] that rows choose by their rules."""
    logits = np.random.default_rng(3).normal(size=(len(rules), 50)).astype(np.float32)
    keys = row_keys(jax.random.key(1), np.arange(len(rules)))
    temperature, top_p = np.array(rules, np.float32).T
    given = RowRules(temperature, top_p, np.full(len(rules), 9, np.int32))
    choose = jax.jit(choose_tokens, static_argnames="sampling")
    tokens = [
        choose(logits, SamplingConfig(top_k=20), keys=keys, step=np.int32(i), rules=given)
        for i in range(steps)
    ]
    return logits, keys, np.stack(tokens, axis=1)


def test_rules_of_rows_are_those_of_a_batch():
    logits, keys, tokens = by_row(RULES_BY_ROW)
    for row, (temperature, top_p) in enumerate(RULES_BY_ROW):
        sampling = SamplingConfig(temperature, top_k=20, top_p=top_p)
        for step, token in enumerate(tokens[row]):
            expected = choose_tokens(logits, sampling, keys=keys, step=np.int32(step))
            assert token == expected[row]
    assert len({*tokens[3].tolist()}) > 1 and len({*tokens[0].tolist()}) == 1


def test_no_row_depends_on_the_rules_of_others():
    _, _, together = by_row(RULES_BY_ROW)
    for row in range(len(RULES_BY_ROW)):
        alone = [rules if i == row else (0.0, 1.0) for i, rules in enumerate(RULES_BY_ROW)]
        np.testing.assert_array_equal(by_row(alone)[2][row], together[row])


def test_rows_that_draw_nothing_pay_for_no_rule():
    def operations(rules):
        text = str(
            jax.make_jaxpr(
                lambda logits, keys, rules: choose_tokens(
                    logits, GREEDY, keys=keys, step=jnp.int32(0), rules=rules
                )
            )(jnp.zeros((2, 9)), jax.random.split(jax.random.key(0), 2), rules)
        )
        outside = text.partition("cond[")[0]
        return outside, text

    outside, text = operations(RowRules(jnp.zeros(2), jnp.ones(2), jnp.ones(2, jnp.int32)))
    assert "sort" not in outside and "random" not in outside
    assert "sort" in text and text.count("cond[") == 2
