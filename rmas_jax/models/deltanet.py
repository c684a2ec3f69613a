"""The linear layer of Qwen3.5: a short convolution and a gated delta rule (arXiv 2412.06464).

Each head has a memory matrix M [key dim, value dim]. Every token decays it, corrects its value for
the token's key, and reads it with the token's query:

    M <- exp(decay) * M
    M <- M + key (rate * (value - key^T M))^T
    out = query^T M

Many tokens are processed in chunks, whose corrections solve one triangular system; a single token
takes the step above. Both are float32, also in their products, and differentiable.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from rmas_jax.models.config import DecoderConfig
from rmas_jax.models.int8 import as_array
from rmas_jax.models.norms import inverse_root
from rmas_jax.models.projection import project
from rmas_jax.models.weights import used_parameter
from rmas_jax.partition import ONE_DEVICE, Partition

CHUNK = 64  # tokens, as in the published kernels
# By default, a TPU rounds the factors of a float32 product to bfloat16.
product = functools.partial(jnp.matmul, precision="highest")


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length one over the last axis; a zero vector stays zero."""
    return x * inverse_root(jnp.sum(x * x, axis=-1, keepdims=True), 1e-6)


def delta_step(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    decay: jax.Array,
    rate: jax.Array,
    memory: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The delta rule for a single token: shapes of `delta_chunks` without the time axis."""

    def read(at: jax.Array) -> jax.Array:
        return jnp.einsum("bnk,bnkv->bnv", at, memory, precision="highest")

    memory = memory * jnp.exp(decay)[..., None, None]
    wrong = value - read(key)
    memory = memory + key[..., None] * (rate[..., None] * wrong)[..., None, :]
    return read(query), memory


def delta_chunks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    decay: jax.Array,
    rate: jax.Array,
    memory: jax.Array,
    fresh: jax.Array | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """The delta rule for many tokens.

    Args:
      query: [B, T, N, key dim] float32, scaled.
      key: [B, T, N, key dim] of length one, or zero.
      value: [B, T, N, value dim].
      decay: [B, T, N], at most 0: the logarithm of the retained share.
      rate: [B, T, N] from 0 to 1: strength of the correction. Tokens of zero decay and rate have no
        effect.
      memory: [B, N, key dim, value dim] before the first token.
      fresh: [B, T] bool, tokens that start with an empty memory.
      chunk: tokens per chunk.

    Returns:
      [B, T, N, value dim] and the memory after the last token.
    """
    batch, time, heads, _ = query.shape
    chunk = min(chunk, time)
    spare = -time % chunk

    def chunked(x: jax.Array) -> jax.Array:
        """[B, T, N, ...] -> [chunks, B, N, chunk, ...], with spare tokens at the end."""
        x = jnp.pad(x, ((0, 0), (0, spare)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(batch, -1, chunk, *x.shape[2:])
        return jnp.moveaxis(x, (1, 3), (0, 2))

    query, key, value, decay, rate = map(chunked, (query, key, value, decay, rate))
    faded = jnp.cumsum(decay, axis=-1)  # since the start of the chunk
    # between[t, s]: log of the share at t of a value written at s <= t. Masked before the
    # exponential, which may overflow for s > t.
    between = faded[..., :, None] - faded[..., None, :]
    lasts = jnp.tril(jnp.ones((chunk, chunk), bool))[None, None, None]
    since_start, until_end = jnp.exp(faded), jnp.exp(faded[..., -1:] - faded)
    if fresh is not None:
        emptied = jnp.cumsum(chunked(fresh[:, :, None]), axis=-1)  # times since the start
        lasts &= emptied[..., :, None] == emptied[..., None, :]
        since_start = jnp.where(emptied == 0, since_start, 0)
        until_end = jnp.where(emptied == emptied[..., -1:], until_end, 0)
    left = jnp.exp(jnp.where(lasts, between, -jnp.inf))

    transposed = jnp.swapaxes(key, -1, -2)
    rated_key = key * rate[..., None]
    # A token's correction depends on those of earlier tokens of its chunk with similar keys.
    # Entries below the diagonal; the diagonal of ones is implicit.
    system = product(rated_key, transposed) * left
    wanted = jnp.concatenate([value * rate[..., None], rated_key * since_start[..., None]], axis=-1)
    solved = jax.lax.linalg.triangular_solve(
        system, wanted, left_side=True, lower=True, unit_diagonal=True
    )
    written, corrected = jnp.split(solved, (value.shape[-1],), axis=-1)
    within = product(query, transposed) * left

    def read(memory: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, key, within, written, corrected, kept = x
        fresh = written - product(corrected, memory)
        out = product(query, memory) + product(within, fresh)
        return kept[..., None, None] * memory + product(jnp.swapaxes(key, -1, -2), fresh), out

    xs = (
        query * since_start[..., None],
        key * until_end[..., None],
        within,
        written,
        corrected,
        since_start[..., -1],
    )
    memory, out = jax.lax.scan(read, memory, xs)  # [chunks, B, N, chunk, value dim]
    out = jnp.moveaxis(out, (0, 2), (1, 3)).reshape(batch, time + spare, heads, -1)
    return out[:, :time], memory


def causal_conv(
    x: jax.Array,
    valid: jax.Array,
    kernel: jax.Array,
    before: jax.Array,
    fresh: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Depthwise convolution over the last W real tokens, also those of previous calls.

    Previous inputs are placed directly before the first real token, after the pads:

        before  a b c      x  . . d e      ->      . . a b c d e

    Args:
      x: [B, T, C], padded on the left with zeros.
      valid: [B, T] bool.
      kernel: [W, C]; the last row is for the token itself.
      before: [B, W - 1, C], the inputs before this call; zero at the start of a sequence.
      fresh: [B, T] bool, first tokens of texts, which see no earlier ones; T > 1.

    Returns:
      [B, T, C], undefined on pads, and the last W - 1 inputs.
    """
    width, time = kernel.shape[0], x.shape[1]
    if time == 1:
        line = jnp.concatenate([before, x], axis=1)
        after = jnp.where(valid[:, :, None], line[:, 1:], before)
    else:
        pads = jnp.sum(~valid, axis=1, dtype=jnp.int32)
        place = jnp.arange(time + width - 1)[None] - pads[:, None]
        line = jnp.take_along_axis(before, jnp.clip(place, 0, width - 2)[:, :, None], axis=1)
        is_before = (place >= 0) & (place < width - 1)
        line = jnp.where(is_before[:, :, None], line, jnp.pad(x, ((0, 0), (width - 1, 0), (0, 0))))
        after = line[:, time:]
    windows = [line[:, i : i + time] for i in range(width)]
    if fresh is not None:
        emptied = jnp.cumsum(jnp.pad(fresh, ((0, 0), (width - 1, 0))), axis=1)
        windows = [
            jnp.where((emptied[:, i : i + time] == emptied[:, width - 1 :])[..., None], window, 0)
            for i, window in enumerate(windows)
        ]
    out = sum(kernel[None, None, i] * window for i, window in enumerate(windows))
    return cast(jax.Array, out), after


class GatedDeltaNet(nn.Module):
    """Convolution, delta rule, norm and gate, in place of attention."""

    config: DecoderConfig
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array,
        state: tuple[jax.Array, jax.Array],
        fresh: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Reads a block that is padded on the left.

        Args:
          x: [B, T, D].
          valid: [B, T] bool.
          state: inputs of the convolution [B, W - 1, C] and memory [B, N, key dim, value dim].
          fresh: [B, T] bool, first tokens of texts; T > 1.

        Returns:
          [B, T, D] and the new state, independent of pads.
        """
        c, on = self.config, self.partition
        batch, time, _ = x.shape
        heads, group = c.linear_key_heads, c.linear_value_heads // c.linear_key_heads
        keys = heads * c.linear_key_dim

        def by_heads(x: jax.Array) -> jax.Array:
            return on.constrain(x, "batch", None, "heads", *(None,) * (x.ndim - 3))

        def weight(name: str) -> Any:
            return used_parameter(self, f"linear/{name}")

        kernels = {
            name: as_array(weight(f"{name}_kernel"), x) for name in ("qkv", "gate", "rate", "decay")
        }
        conv = weight("conv_kernel").astype(x.dtype)
        decay_log = weight("decay_log").astype(jnp.float32)
        decay_bias = weight("decay_bias").astype(jnp.float32)
        norm, out_kernel = weight("norm_weight"), weight("out_kernel")

        def per_head(name: str) -> jax.Array:
            # Whole rows at first: XLA sums so few numbers for a part of the rows by dozens of steps
            # from device to device.
            return on.constrain(project(x, kernels[name], on), "rows", None, "heads")

        real = valid[:, :, None]
        x = on.constrain(jnp.where(real, x, 0), "rows", None, "embed")  # finite on pads
        before, memory = state[0].astype(x.dtype), state[1]
        mixed = on.constrain(project(x, kernels["qkv"], on), "batch", None, None)
        mixed, inputs = causal_conv(mixed, valid, conv, before, fresh)
        mixed = jax.nn.silu(mixed).astype(jnp.float32)
        query, key, value = jnp.split(mixed, (keys, 2 * keys), axis=-1)
        query, key = (
            jnp.repeat(unit(v.reshape(batch, time, heads, -1)), group, axis=2) for v in (query, key)
        )
        query = query * c.linear_key_dim**-0.5
        value = value.reshape(batch, time, c.linear_value_heads, -1)
        query, key, value = map(by_heads, (query, key, value))
        rate = jax.nn.sigmoid(by_heads(per_head("rate")).astype(jnp.float32))
        rate = jnp.where(real, rate, 0)  # pads write nothing
        slope = by_heads(per_head("decay")).astype(jnp.float32)
        slope = jax.nn.softplus(slope + decay_bias[None, None])
        decay = jnp.where(real, -jnp.exp(decay_log)[None, None] * slope, 0)  # pads: no decay

        if time == 1:
            query, key, value, decay, rate = (v[:, 0] for v in (query, key, value, decay, rate))
            out, memory = delta_step(query, key, value, decay, rate, memory)
            out = out[:, None]
        else:
            out, memory = delta_chunks(query, key, value, decay, rate, memory, fresh)

        out = out * inverse_root(jnp.mean(out * out, axis=-1, keepdims=True), c.norm_eps)
        out = norm.astype(jnp.float32)[None, None, None] * out
        gate = by_heads(project(x, kernels["gate"], on)).astype(jnp.float32)
        out = (out * jax.nn.silu(gate)).astype(x.dtype)
        out = on.constrain(by_heads(out), "rows", None, "heads", None)
        out = project(out, as_array(out_kernel, x), on)
        inputs = on.constrain(inputs, "batch", None, None)
        memory = on.constrain(memory, "batch", "heads", None, None)
        return out, (inputs.astype(state[0].dtype), memory.astype(state[1].dtype))
