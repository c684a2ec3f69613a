"""Model FLOPs of useful work: a closed form of a decoder's sizes and of the positions it reads.

Counted: every product with a weight matrix (2 per weight and position; a convolution's kernel
too), attention scores and values (4 N H per visible key), the three products of a delta rule's
memory (6 per entry), and logits where they are needed. Not counted: norms, activations, rotations
and softmax, padding, masked keys, and positions that a program reads twice. A linear layer counts
as its recurrence, whichever form computes it.

All functions take numbers or arrays [B] of real positions, and return float64: exact below 2^53.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rmas_jax.models.architecture import DecoderConfig
from rmas_jax.models.weights import weight_table


def read_flops(config: DecoderConfig, positions: ArrayLike, context: ArrayLike = 0) -> np.ndarray:
    """FLOPs of reading positions after others, without logits.

    Reading in pieces costs the same as reading at once.

    Args:
      config: of the decoder; loops count.
      positions: number of real positions read.
      context: number of real positions before them.
    """
    c = config
    read, before = np.asarray(positions, np.float64), np.asarray(context, np.float64)
    sliding = sum(c.sliding_layers)
    linear = sum(c.linear_layers)
    full_keys = (c.num_layers - sliding - linear) * _visible_keys(read, before, math.inf)
    near_keys = sliding * _visible_keys(read, before, c.window or math.inf)
    memory = linear * c.linear_value_heads * c.linear_key_dim * c.linear_value_dim
    of_position = 2 * layer_weights(c) + 6 * memory
    of_key = 4 * c.num_heads * c.head_dim
    return c.num_loops * (of_position * read + of_key * (full_keys + near_keys))


def logit_flops(config: DecoderConfig, positions: ArrayLike) -> np.ndarray:
    """FLOPs of the logits at a number of positions."""
    return 2.0 * config.width * config.vocab_size * np.asarray(positions, np.float64)


def text_flops(
    config: DecoderConfig,
    written: ArrayLike,
    *,
    body: ArrayLike,
    prefix: ArrayLike,
    text: ArrayLike,
) -> np.ndarray:
    """FLOPs of reading the body of a prompt and writing a text after it.

    Args:
      config: of the decoder.
      written: number of tokens chosen by the agent, each from logits.
      body: number of positions of the prompt after its prefix.
      prefix: number of positions before, read at another time.
      text: number of tokens of the text, inserted ones (tool results) included; the last one is
        not read.
    """
    unread_last = np.maximum(np.asarray(text, np.float64) - 1, 0)
    return read_flops(config, np.asarray(body) + unread_last, prefix) + logit_flops(config, written)


def layer_weights(config: DecoderConfig) -> int:
    """Entries of all layers' kernels: weights that multiply every position once per loop."""
    return sum(
        math.prod(weight.shape)
        for weight in weight_table(config)
        if weight.is_stacked and weight.row.path.endswith("_kernel")
    )


def _visible_keys(read: np.ndarray, before: np.ndarray, window: float) -> np.ndarray:
    """Pairs of a query and a visible key: query t of the sequence sees min(t + 1, window) keys."""

    def until(end: np.ndarray) -> np.ndarray:
        growing = np.minimum(end, window)
        # Past the window, each query sees all of it; 0 x inf is no number.
        return growing * (growing + 1) / 2 + np.where(end > window, (end - growing) * growing, 0.0)

    return until(before + read) - until(before)
