"""The gated delta rule and its convolution against transformers and against their definition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from rmas_jax.models.deltanet import causal_conv, delta_chunks, delta_step, unit

torch.set_num_threads(1)
TOLERANCE = 1e-5
BATCH, HEADS, KEY, VALUE = 2, 3, 6, 5


def inputs(time: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the rule takes, before queries and keys are normed, and with a memory to start from."""
    rng = np.random.default_rng(seed)
    draw = functools.partial(rng.normal, size=(BATCH, time, HEADS))
    out = {
        "query": rng.normal(size=(BATCH, time, HEADS, KEY)),
        "key": rng.normal(size=(BATCH, time, HEADS, KEY)) + 0.5,  # keys that resemble each other
        "value": rng.normal(size=(BATCH, time, HEADS, VALUE)),
        "decay": -np.exp(draw() - 2),
        "rate": 1 / (1 + np.exp(-draw() - 1)),
        "memory": rng.normal(size=(BATCH, HEADS, KEY, VALUE)),
    }
    return {name: x.astype(np.float32) for name, x in out.items()}


@functools.partial(jax.jit, static_argnames="chunk")
def chunks(query, key, value, decay, rate, memory, chunk=4):
    return delta_chunks(unit(query) * KEY**-0.5, unit(key), value, decay, rate, memory, chunk=chunk)


def torch_rule(rule, query, key, value, decay, rate, memory, **options):
    return rule(
        query,
        key,
        value,
        g=decay,
        beta=rate,
        initial_state=memory,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        **options,
    )


@pytest.mark.parametrize(("time", "chunk"), [(11, 4), (8, 4), (3, 64)])
def test_chunks_equal_torch(time, chunk):
    x = inputs(time)
    ours = chunks(**x, chunk=chunk)
    tensors = {name: torch.tensor(v) for name, v in x.items()}
    for rule in (theirs.torch_chunk_gated_delta_rule, theirs.torch_recurrent_gated_delta_rule):
        expected = torch_rule(rule, **tensors)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=TOLERANCE, atol=TOLERANCE)
    still = chunks(**x | {"decay": 0 * x["decay"]}, chunk=chunk)
    assert np.abs(still[1] - ours[1]).max() > 100 * TOLERANCE


def test_gradients_of_chunks_equal_torch():
    x = inputs(7)
    rng = np.random.default_rng(1)
    weights = [
        rng.normal(size=shape).astype(np.float32)
        for shape in ((BATCH, 7, HEADS, VALUE), (BATCH, HEADS, KEY, VALUE))
    ]

    @jax.jit
    def gradient(x):
        def scalar(x):
            return sum(jnp.sum(w * out) for w, out in zip(weights, chunks(**x), strict=True))

        return jax.grad(scalar)(x)

    leaves = {name: torch.tensor(v, requires_grad=True) for name, v in x.items()}
    expected = torch_rule(theirs.torch_recurrent_gated_delta_rule, **leaves)
    sum((torch.tensor(w) * out).sum() for w, out in zip(weights, expected, strict=True)).backward()
    ours = gradient(x)
    for name, leaf in leaves.items():
        scale = leaf.grad.abs().max().item()
        np.testing.assert_allclose(ours[name], leaf.grad, rtol=1e-4, atol=1e-4 * scale)
        assert scale > 0.1


def test_steps_equal_chunks():
    x = inputs(5)
    out, last = chunks(**x)
    query, key = unit(jnp.asarray(x["query"])) * KEY**-0.5, unit(jnp.asarray(x["key"]))
    memory, step = x["memory"], jax.jit(delta_step)
    for t in range(5):
        of_token = (v[:, t] for v in (query, key, x["value"], x["decay"], x["rate"]))
        read, memory = step(*of_token, memory)
        np.testing.assert_allclose(read, out[:, t], rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(memory, last, rtol=TOLERANCE, atol=TOLERANCE)


def test_like_keys_stay_exact():
    """The worst case of the triangular system: one key again and again, always overwritten."""
    x = inputs(64)
    x["key"] = np.broadcast_to(x["key"][:, :1], x["key"].shape)
    x["rate"], x["decay"] = np.ones_like(x["rate"]), np.zeros_like(x["decay"])
    _, memory = chunks(**x, chunk=64)
    key = np.asarray(unit(jnp.asarray(x["key"])))[:, -1]
    held = np.einsum("bnk,bnkv->bnv", key, memory)
    np.testing.assert_allclose(held, x["value"][:, -1], rtol=1e-4, atol=1e-4)


def naive_conv(rows, kernel):
    """Every row by itself: what a token sees is W rows of all real inputs up to it."""
    width = kernel.shape[0]
    outs = []
    for row in rows:
        line = np.concatenate([np.zeros((width - 1, row.shape[1])), row])
        outs.append(np.array([(kernel * line[t : t + width]).sum(axis=0) for t in range(len(row))]))
    return outs


def test_convolution_skips_the_pads_of_later_blocks():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3)).astype(np.float32)
    lengths = [(5, 1, 3, 0, 1), (2, 4, 0, 1, 1), (0, 0, 2, 1, 1)]  # per row, its share of a block
    capacities = (5, 4, 3, 1, 1)
    rows = [rng.normal(size=(sum(row), 3)).astype(np.float32) for row in lengths]
    expected = naive_conv(rows, kernel)
    before = np.zeros((3, 3, 3), np.float32)
    done = [0, 0, 0]
    conv = jax.jit(causal_conv)
    for block, time in enumerate(capacities):
        x = np.zeros((3, time, 3), np.float32)
        valid = np.zeros((3, time), bool)
        for i, row in enumerate(rows):
            n = lengths[i][block]
            x[i, time - n :], valid[i, time - n :] = row[done[i] : done[i] + n], True
        out, before = conv(x, valid, kernel, before)
        for i in range(3):
            n = lengths[i][block]
            np.testing.assert_allclose(
                out[i, time - n :], expected[i][done[i] : done[i] + n], rtol=1e-5, atol=1e-5
            )
            done[i] += n
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(before[i], row[-3:])
