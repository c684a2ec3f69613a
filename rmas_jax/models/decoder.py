"""One Flax decoder for the dense families (Llama, Qwen3, Gemma-3): embed, read, unembed.

Tokens and latent thoughts enter one way, as embeddings. What comes out is the hidden state after
the final norm: the vector that the unembedding multiplies, and the latent thought of an agent.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rmas_jax.models.attention import attend, rotary
from rmas_jax.models.cache import Block, Cache, empty_cache
from rmas_jax.models.config import DecoderConfig

INIT = nn.initializers.normal(0.02)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    eps: float
    unit_offset: bool = False  # weights act as 1 + w

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        weight = self.param("weight", init, (x.shape[-1],), jnp.float32).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        weight = jnp.expand_dims(weight + float(self.unit_offset), tuple(range(x.ndim - 1)))
        return (normed * weight).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over finished blocks and the tail that this call extends."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, theta, past, tail, start, positions, visible):
        c = self.config

        def project(name, heads):
            kernel = self.param(f"{name}_kernel", INIT, (c.width, heads, c.head_dim))
            out = jnp.einsum("btd,dnh->btnh", x, kernel.astype(x.dtype))
            if c.qkv_bias:
                bias = self.param(f"{name}_bias", nn.initializers.zeros, (heads, c.head_dim))
                out += bias.astype(x.dtype)[None, None]
            return out

        query = project("q", c.num_heads)
        key, value = project("k", c.num_kv_heads), project("v", c.num_kv_heads)
        if c.qk_norm:
            query = RMSNorm(c.norm_eps, c.unit_offset_norm, name="q_norm")(query)
            key = RMSNorm(c.norm_eps, c.unit_offset_norm, name="k_norm")(key)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        # Scaled in float32: a scale rounded to bfloat16 would bend all logits the same way.
        query = (rotary(query.astype(jnp.float32), positions, theta) * scale).astype(x.dtype)
        key = rotary(key, positions, theta)

        keys = jax.lax.dynamic_update_slice_in_dim(
            tail[0], key.astype(tail[0].dtype), start, axis=1
        )
        values = jax.lax.dynamic_update_slice_in_dim(
            tail[1], value.astype(tail[1].dtype), start, axis=1
        )
        mixed = attend(
            query,
            (*(block[0] for block in past), keys),
            (*(block[1] for block in past), values),
            visible,
        )
        kernel = self.param("o_kernel", INIT, (c.num_heads, c.head_dim, c.width))
        return jnp.einsum("btnh,nhd->btd", mixed, kernel.astype(x.dtype)), (keys, values)


class FeedForward(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate = self.param("gate_kernel", INIT, (c.width, c.ffn_width)).astype(x.dtype)
        up = self.param("up_kernel", INIT, (c.width, c.ffn_width)).astype(x.dtype)
        down = self.param("down_kernel", INIT, (c.ffn_width, c.width)).astype(x.dtype)
        act = jax.nn.silu if c.activation == "silu" else jax.nn.gelu  # jax's gelu is the tanh form
        flat = x.reshape(-1, c.width)  # one matrix: its weight gradient is one product, not B
        return ((act(flat @ gate) * (flat @ up)) @ down).reshape(x.shape)


class Layer(nn.Module):
    """One decoder layer; the body of the scan over layers."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, of_layer, shared):
        c = self.config
        past, tail, sliding = of_layer
        start, positions, visible, visible_in_window = shared
        theta = jnp.float32(c.rope_theta)
        if c.sliding_layers:
            if c.local_rope_theta is not None:
                theta = jnp.where(sliding, jnp.float32(c.local_rope_theta), theta)
            visible = tuple(
                jnp.where(sliding, near, all_)
                for near, all_ in zip(visible_in_window, visible, strict=True)
            )

        def norm(name):
            return RMSNorm(c.norm_eps, c.unit_offset_norm, name=name)

        mixed, tail = Attention(c, name="attention")(
            norm("attention_norm")(x), theta, past, tail, start, positions, visible
        )
        if c.sandwich_norms:
            mixed = norm("attention_out_norm")(mixed)
        x = x + mixed
        out = FeedForward(c, name="ffn")(norm("ffn_norm")(x))
        if c.sandwich_norms:
            out = norm("ffn_out_norm")(out)
        return x + out, tail


class Decoder(nn.Module):
    """A frozen language model as three functions: `embed`, `__call__` and `unembed`.

    Parameters are float32 or bfloat16 as loaded; activations have the dtype of the embeddings
    that enter. `unroll_layers` lays the layers out one after another instead of looping:
    quicker single steps, longer compilation, the same numbers.
    """

    config: DecoderConfig
    unroll_layers: bool = False

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", INIT, (c.vocab_size, c.width))
        self.layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.num_layers,
            unroll=c.num_layers if self.unroll_layers else 1,
        )(c)
        self.final_norm = RMSNorm(c.norm_eps, c.unit_offset_norm)
        if not c.tie_embeddings:
            self.unembed_kernel = self.param("unembed_kernel", INIT, (c.width, c.vocab_size))

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, T] -> input embeddings [B, T, D], scaled where the family scales them."""
        out = jnp.take(self.embedding, ids, axis=0)
        return out * jnp.asarray(self.config.embed_scale, out.dtype)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Final-norm hidden states [B, T, D] -> logits [B, T, V], float32."""
        kernel = self.embedding.T if self.config.tie_embeddings else self.unembed_kernel
        return jnp.einsum(
            "btd,dv->btv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
        )

    def __call__(self, embeds: jax.Array, valid: jax.Array, cache: Cache | None = None) -> Any:
        """Reads embeddings after everything in `cache`.

        Args:
          embeds: [B, T, D] input embeddings; tokens and latents alike.
          valid: [B, T] bool, False on padding; pads stand on the left of a block.
          cache: what was read before; its tail must have T free slots (not checked under jit:
            an overflow would overwrite the last slots).

        Returns:
          Hidden states after the final norm [B, T, D]; with a cache, (hidden, new cache).
        """
        c = self.config
        given = cache is not None
        if not given:
            cache = empty_cache(c, embeds.shape[0], embeds.shape[1], dtype=embeds.dtype)
        time = embeds.shape[1]
        counted = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        positions = cache.next_position[:, None] + jnp.maximum(counted - 1, 0)
        tail = cache.tail.replace(
            valid=jax.lax.dynamic_update_slice_in_dim(cache.tail.valid, valid, cache.used, axis=1),
            positions=jax.lax.dynamic_update_slice_in_dim(
                cache.tail.positions, positions, cache.used, axis=1
            ),
        )
        # Query t of this call sits in slot used + t of the tail and sees the slots up to its own.
        slots = jnp.arange(tail.valid.shape[1])
        causal = slots[None, :] <= cache.used + jnp.arange(time)[:, None]  # [T, S]
        blocks = (*cache.past, tail)
        visible = [
            jnp.broadcast_to(b.valid[:, None, :], (b.valid.shape[0], time, b.valid.shape[1]))
            for b in blocks
        ]
        visible[-1] &= causal[None]
        visible = tuple(visible)
        near = visible
        if c.sliding_layers:
            near = tuple(
                see & (positions[:, :, None] - b.positions[:, None, :] < c.window)
                for see, b in zip(visible, blocks, strict=True)
            )
        of_layers = (
            tuple((b.keys, b.values) for b in cache.past),
            (tail.keys, tail.values),
            jnp.asarray(c.sliding_layers or (False,) * c.num_layers),
        )
        x, (keys, values) = self.layers(embeds, of_layers, (cache.used, positions, visible, near))
        hidden = self.final_norm(x)
        if not given:
            return hidden
        return hidden, cache.replace(
            tail=Block(keys, values, tail.valid, tail.positions),
            used=cache.used + time,
            next_position=cache.next_position + counted[:, -1],
        )
