"""Text of whole models, against `generate` of transformers: greedy, penalised, sampled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from systems import cut_at_ends

from rmas_jax.agents.agent import load_agent
from rmas_jax.agents.sampling import GREEDY, row_keys, seen_tokens, speak
from rmas_jax.models import seal
from rmas_jax.models.generation import SamplingConfig

NEVER = np.array([1000, 1000])  # no tokens of the vocabulary
TORCH_CASES = ["llama", "qwen3-window", "gemma3"]  # of conftest.CASES; a line per layer kind
TORCH_LENGTHS = (9, 4, 1)
TORCH_TOKENS = 10
PENALTY = SamplingConfig(repetition_penalty=1.4)


@functools.partial(jax.jit, static_argnames="sampling")
def _go_on(agent, embeds, valid, ends, *, sampling=GREEDY, keys=None, seen=None):
    hidden, cache = agent.read(embeds, valid)
    cache = seal(cache, agent.config, TORCH_TOKENS - 1)
    options = {"end_tokens": ends, "max_tokens": TORCH_TOKENS, "sampling": sampling}
    state = speak(agent, hidden[:, -1], cache, **options, keys=keys, seen=seen)
    return state.tokens, state.lengths


def ragged(seed=2):
    time = max(TORCH_LENGTHS)
    ids = np.random.default_rng(seed).integers(1, 61, (len(TORCH_LENGTHS), time))
    valid = np.arange(time)[None, :] >= time - np.array(TORCH_LENGTHS)[:, None]
    return np.where(valid, ids, 0), valid


def torch_text(theirs, valid, ends=None, penalty=1.0, **inputs):
    """New tokens [B, W] of torch, 0 after a row's end."""
    tokens = theirs.generate(
        **{name: torch.tensor(value) for name, value in inputs.items()},
        attention_mask=torch.tensor(valid).long(),
        do_sample=False,
        max_new_tokens=TORCH_TOKENS,
        pad_token_id=0,
        eos_token_id=ends,
        repetition_penalty=penalty,
    ).numpy()
    tokens = tokens[:, valid.shape[1] if "input_ids" in inputs else 0 :]
    return np.pad(tokens, ((0, 0), (0, TORCH_TOKENS - tokens.shape[1])))


@pytest.mark.parametrize("case", TORCH_CASES)
def test_greedy_text_equals_torch(oracle, case):
    theirs = oracle(case).model
    agent = load_agent(oracle(case).directory)
    ids, valid = ragged()
    embeds = agent.embed(ids)
    free = torch_text(theirs, valid, input_ids=ids)
    ours, lengths = _go_on(agent, embeds, valid, NEVER)
    np.testing.assert_array_equal(ours, free)
    np.testing.assert_array_equal(lengths, TORCH_TOKENS)
    assert len(np.unique(free)) > 3  # not one token for ever

    # Two end tokens: spoken in the middle of two rows.
    ends = np.array([free[0, TORCH_TOKENS // 2], free[1, TORCH_TOKENS // 3]])
    stopped = torch_text(theirs, valid, ends.tolist(), input_ids=ids)
    ours, lengths = _go_on(agent, embeds, valid, ends)
    np.testing.assert_array_equal(ours, stopped)
    np.testing.assert_array_equal(lengths, cut_at_ends(free, ends)[1])
    assert len(set(lengths.tolist())) > 1

    # Embeddings that no token has. Gemma scales the embeddings of tokens only, in torch too.
    noise = np.random.default_rng(3).normal(size=embeds.shape).astype(np.float32)
    latents = np.asarray(embeds) * np.float32(0.7) + noise * np.float32(0.3)
    expected = torch_text(theirs, valid, inputs_embeds=latents)
    np.testing.assert_array_equal(_go_on(agent, latents, valid, NEVER)[0], expected)
    assert np.any(expected != free)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
def test_penalised_text_equals_torch(oracle):
    theirs = oracle("llama").model
    agent = load_agent(oracle("llama").directory)
    ids, valid = ragged(seed=3)
    embeds = agent.embed(ids)
    seen = seen_tokens(jnp.asarray(ids), jnp.asarray(valid), agent.config.vocab_size)
    assert seen.sum(1).tolist() == [len(set(r[v])) for r, v in zip(ids, valid, strict=True)]
    penalty = PENALTY.repetition_penalty

    free = torch_text(theirs, valid, input_ids=ids)
    expected = torch_text(theirs, valid, penalty=penalty, input_ids=ids)
    ours = _go_on(agent, embeds, valid, NEVER, sampling=PENALTY, seen=seen)[0]
    np.testing.assert_array_equal(ours, expected)
    # Without ids only what was written counts. Rows with pads have no oracle: for as many tokens
    # as a row has pads, transformers then forgets what it wrote.
    alone = torch_text(theirs, valid[:1], penalty=penalty, inputs_embeds=np.asarray(embeds[:1]))
    nothing = jnp.zeros_like(seen)
    ours = _go_on(agent, embeds, valid, NEVER, sampling=PENALTY, seen=nothing)[0]
    np.testing.assert_array_equal(ours[:1], alone)
    assert np.any(expected != free) and np.any(alone != free[:1]) and np.any(alone != expected[:1])


def test_a_row_draws_the_same_alone(oracle):
    agent = load_agent(oracle("llama").directory)
    ids, valid = ragged()
    embeds = agent.embed(ids)
    rules = SamplingConfig(temperature=1.5, top_k=30, top_p=0.9)

    def write(rows, key=0):
        rows = np.array(rows)
        keys = row_keys(jax.random.key(key), rows)
        return np.asarray(
            _go_on(agent, embeds[rows], valid[rows], NEVER, sampling=rules, keys=keys)[0]
        )

    together = write([0, 1, 2])
    np.testing.assert_array_equal(write([2])[0], together[2])
    np.testing.assert_array_equal(write([2, 0, 1]), together[[2, 0, 1]])
    assert np.any(write([0, 1, 2], key=1) != together)
    assert np.any(together != torch_text(oracle("llama").model, valid, input_ids=ids))
    assert np.any(write([0, 0, 0]) != write([0, 1, 2]))
