"""One Flax decoder for all families: embed, read, unembed.

Tokens and latent thoughts enter one way, as embeddings. What comes out is the hidden state after
the final norm: the vector that the unembedding multiplies, and the latent thought of an agent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rmas_jax.models.attention import attend, rotary
from rmas_jax.models.cache import Block, Cache, LinearState, empty_cache
from rmas_jax.models.config import DecoderConfig
from rmas_jax.models.deltanet import GatedDeltaNet
from rmas_jax.models.int8 import as_array, dequantised
from rmas_jax.models.rope import rotary_frequencies

INIT = nn.initializers.normal(0.02)


class Reading(NamedTuple):
    """What all layers of one call share."""

    start: jax.Array  # [] int32; slot of the tail that the first position gets
    positions: jax.Array  # [B, T] int32
    valid: jax.Array  # [B, T] bool
    visible: tuple[jax.Array, ...]  # per block [B, T, S] bool; which keys a position sees
    near: tuple[jax.Array, ...]  # the same, in a sliding layer
    fresh: jax.Array | None  # [B, T] bool; first positions of packed texts


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
    def __call__(self, x, rope, past, tail, reading, visible):
        c = self.config
        start, positions = reading.start, reading.positions

        def project(name, heads, size=c.head_dim):
            kernel = self.param(f"{name}_kernel", INIT, (c.width, heads, size))
            out = jnp.einsum("btd,dnh->btnh", x, as_array(kernel, x))
            if c.qkv_bias:
                bias = self.param(f"{name}_bias", nn.initializers.zeros, (heads, size))
                out += bias.astype(x.dtype)[None, None]
            return out

        if c.gated_attention:
            query, gate = jnp.split(project("q", c.num_heads, 2 * c.head_dim), 2, axis=-1)
        else:
            query = project("q", c.num_heads)
        key, value = project("k", c.num_kv_heads), project("v", c.num_kv_heads)
        if c.qk_norm:
            query = RMSNorm(c.norm_eps, c.unit_offset_norm, name="q_norm")(query)
            key = RMSNorm(c.norm_eps, c.unit_offset_norm, name="k_norm")(key)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        # Scaled in float32: a scale rounded to bfloat16 would bend all logits the same way.
        query = (rotary(query.astype(jnp.float32), positions, *rope) * scale).astype(x.dtype)
        key = rotary(key, positions, *rope)

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
        if c.gated_attention:
            mixed = mixed * jax.nn.sigmoid(gate)
        kernel = self.param("o_kernel", INIT, (c.num_heads, c.head_dim, c.width))
        return jnp.einsum("btnh,nhd->btd", mixed, as_array(kernel, x)), (keys, values)


class FeedForward(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x))."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate = as_array(self.param("gate_kernel", INIT, (c.width, c.ffn_width)), x)
        up = as_array(self.param("up_kernel", INIT, (c.width, c.ffn_width)), x)
        down = as_array(self.param("down_kernel", INIT, (c.ffn_width, c.width)), x)
        act = jax.nn.silu if c.activation == "silu" else jax.nn.gelu  # jax's gelu is the tanh form
        flat = x.reshape(-1, c.width)  # one matrix: its weight gradient is one product, not B
        return ((act(flat @ gate) * (flat @ up)) @ down).reshape(x.shape)


class Layer(nn.Module):
    """One decoder layer; the body of the scan over layers where all are of one kind."""

    config: DecoderConfig
    linear: bool = False

    @nn.compact
    def __call__(self, x, of_layer, reading: Reading):
        """`of_layer` is the layer's share of the cache and whether it slides.

        Returns what goes on to the next layer, and the layer's new tail and linear state.
        """
        c = self.config
        past, tail, state, sliding = of_layer

        def norm(name):
            return RMSNorm(c.norm_eps, c.unit_offset_norm, name=name)

        normed = norm("attention_norm")(x)
        if self.linear:
            mixed, state = GatedDeltaNet(c, name="linear")(
                normed, reading.valid, state, reading.fresh
            )
        else:
            rope, visible = self._rope(sliding), reading.visible
            if c.sliding_layers:
                visible = tuple(
                    jnp.where(sliding, near, all_)
                    for near, all_ in zip(reading.near, visible, strict=True)
                )
            mixed, tail = Attention(c, name="attention")(normed, rope, past, tail, reading, visible)
        if c.sandwich_norms:
            mixed = norm("attention_out_norm")(mixed)
        x = x + mixed
        out = FeedForward(c, name="ffn")(norm("ffn_norm")(x))
        if c.sandwich_norms:
            out = norm("ffn_out_norm")(out)
        return x + out, (tail, state)

    def _rope(self, sliding):
        """Rotary frequencies and the factor on sine and cosine of this layer."""
        c = self.config
        of_all = [(c.rope_theta, c.rope_scaling)]
        if c.sliding_layers and c.local_rope_theta is not None:
            of_all.append((c.local_rope_theta, c.local_rope_scaling))
        ropes = [
            (
                jnp.asarray(rotary_frequencies(theta, c.rotated_dim, scaling), jnp.float32),
                jnp.float32(scaling.attention_factor),
            )
            for theta, scaling in of_all
        ]
        if len(ropes) == 1:
            return ropes[0]
        return jax.tree.map(lambda full, local: jnp.where(sliding, local, full), *ropes)


class Period(nn.Module):
    """As many layers as it takes until their kinds repeat; the body of the scan over layers."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, of_period, reading: Reading):
        """As `Layer`, with one more axis in front: attention layers apart from linear ones."""
        past, tail, state, sliding = of_period
        tails, states = [], []
        for place, linear in enumerate(self.config.linear_layers[: self.config.period]):
            layer = Layer(self.config, linear, name=f"place_{place}")
            if linear:
                mine = (None, None, _at(state, len(states)), sliding[place])
            else:
                mine = (_at(past, len(tails)), _at(tail, len(tails)), None, sliding[place])
            x, (new_tail, new_state) = layer(x, mine, reading)
            if linear:
                states.append(new_state)
            else:
                tails.append(new_tail)
        return x, tuple(jax.tree.map(lambda *xs: jnp.stack(xs), *kind) for kind in (tails, states))


class Decoder(nn.Module):
    """A frozen language model as three functions: `embed`, `__call__` and `unembed`.

    Parameters are float32 or bfloat16 as loaded, or int8 (`rmas_jax.models.int8`); activations have
    the dtype of the embeddings that enter. `unroll_layers` lays the layers out one after another
    instead of looping: longer compilation, the same numbers, no quicker on a CPU (docs/benchmarks).
    """

    config: DecoderConfig
    unroll_layers: bool = False

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", INIT, (c.vocab_size, c.width))
        periods = c.num_layers // c.period
        # Only what enters a layer is kept for the backward pass: what a scan keeps is copied at
        # every level of nested scans, which took longer to compile and to run than to recompute.
        layer = nn.remat(Layer if c.period == 1 else Period, prevent_cse=False)
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=periods,
            unroll=periods if self.unroll_layers else 1,
        )(c)
        self.final_norm = RMSNorm(c.norm_eps, c.unit_offset_norm)
        if not c.tie_embeddings:
            self.unembed_kernel = self.param("unembed_kernel", INIT, (c.width, c.vocab_size))
        if c.passes is not None:
            self.exit_kernel = self.param("exit_kernel", INIT, (c.width, 1))
            self.exit_bias = self.param("exit_bias", nn.initializers.zeros, (1,))

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, T] -> input embeddings [B, T, D], scaled where the family scales them."""
        rows = jax.tree.map(lambda table: jnp.take(table, ids, axis=0), self.embedding)
        out = dequantised(rows)
        return out * jnp.asarray(self.config.embed_scale, out.dtype)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Final-norm hidden states [B, T, D] -> logits [B, T, V], float32."""
        kernel = self.embedding.T if self.config.tie_embeddings else self.unembed_kernel
        kernel = as_array(kernel, hidden)
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)

    def __call__(self, embeds: jax.Array, valid: jax.Array, cache: Cache | None = None) -> Any:
        """Reads embeddings after everything in `cache`.

        Args:
          embeds: [B, T, D] input embeddings; tokens and latents alike.
          valid: [B, T] bool, False on padding.
          cache: what was read before; its tail must have T free slots (not checked under jit:
            an overflow would overwrite the last slots).

        Returns:
          Hidden states after the final norm [B, T, D]; with a cache, (hidden, new cache).
        """
        given = cache is not None
        if not given:
            cache = empty_cache(self.config, *embeds.shape[:2], dtype=embeds.dtype)
        hidden, cache = self._read(embeds, valid, cache)
        return (hidden[-1], cache) if given else hidden[-1]

    def read_packed(self, embeds: jax.Array, segments: jax.Array) -> jax.Array:
        """Reads several texts per row, each as if it stood alone.

        Args:
          embeds: [B, T, D] input embeddings.
          segments: [B, T] int32, the number of the text that a position belongs to, 0 on padding;
            each text stands in one piece.

        Returns:
          Hidden states after the final norm [B, T, D].
        """
        cache = empty_cache(self.config, *embeds.shape[:2], dtype=embeds.dtype)
        return self._read(embeds, segments > 0, cache, segments)[0][-1]

    def exit_probabilities(self, embeds: jax.Array, valid: jax.Array) -> jax.Array:
        """How likely the exit gate of a looped decoder stops after each pass.

        Args:
          embeds: [B, T, D] input embeddings.
          valid: [B, T] bool, False on padding.

        Returns:
          [B, T, passes] float32, of sum 1: a pass stops with the gate's probability if none
          before it has, and the last one stops in any case.
        """
        if self.config.passes is None:
            raise ValueError(f"{self.config.model_type} has no exit gate: passes=None")
        cache = empty_cache(self.config, *embeds.shape[:2], dtype=embeds.dtype)
        hidden, _ = self._read(embeds, valid, cache)
        kernel, bias = self.exit_kernel.astype(jnp.float32), self.exit_bias.astype(jnp.float32)
        gate = (hidden.astype(jnp.float32) @ kernel)[..., 0] + bias[0]
        stops = jax.nn.sigmoid(gate[:-1])
        goes_on = jnp.cumprod(1 - stops, axis=0)
        first = jnp.ones_like(gate[:1])
        reached = jnp.concatenate([first, goes_on])
        return jnp.moveaxis(reached * jnp.concatenate([stops, first]), 0, -1)

    def _read(self, embeds, valid, cache, segments=None):
        """Hidden states after the final norm of every pass [passes, B, T, D], and the cache.

        With segments, see `read_packed`, the cache is empty; what comes back of it means nothing.
        """
        c = self.config
        time = embeds.shape[1]
        # A linear layer goes from token to token: real tokens move together at the right end.
        moved = any(c.linear_layers) and time > 1
        if moved:
            order = jnp.argsort(valid, axis=1, stable=True)
            embeds = jnp.take_along_axis(embeds, order[:, :, None], axis=1)
            valid = jnp.take_along_axis(valid, order, axis=1)
            segments = None if segments is None else jnp.take_along_axis(segments, order, axis=1)
        counted = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        positions = cache.next_position[:, None] + jnp.maximum(counted - 1, 0)
        fresh = None
        if segments is not None:
            fresh = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
            positions -= jax.lax.cummax(jnp.where(fresh, positions, 0), axis=1)
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
        if segments is not None:
            visible[-1] &= segments[:, :, None] == segments[:, None, :]
        visible = near = tuple(visible)
        if c.sliding_layers:
            near = tuple(
                see & (positions[:, :, None] - b.positions[:, None, :] < c.window)
                for see, b in zip(visible, blocks, strict=True)
            )
        hidden, (keys_values, state) = self._run_passes(
            embeds,
            (
                tuple((b.keys, b.values) for b in cache.past),
                (tail.keys, tail.values),
                cache.state and (cache.state.conv, cache.state.memory),
            ),
            Reading(cache.used, positions, valid, visible, near, fresh),
        )
        if moved:
            back = jnp.argsort(order, axis=1)[None, :, :, None]
            hidden = jnp.take_along_axis(hidden, back, axis=2)
        return hidden, cache.replace(
            tail=Block(*keys_values, tail.valid, tail.positions),
            used=cache.used + time,
            next_position=cache.next_position + counted[:, -1],
            state=state and LinearState(*state),
        )

    def _run_passes(self, x, of_layers, reading):
        """Runs the layers as often as the decoder loops.

        Args:
          x: [B, T, D].
          of_layers: the cache's past, tail and linear states, with the layers in front.
          reading: see `Reading`.

        Returns:
          What comes out of the final norm [passes, B, T, D], and the new tail and states.
        """
        c = self.config
        periods = (c.num_layers // c.period,) if c.period > 1 else ()
        passes = (c.num_passes,) if c.num_passes > 1 else ()
        sliding = jnp.asarray(c.sliding_layers or (False,) * c.num_layers)
        sliding = _split(sliding, periods)

        def one_pass(decoder, x, of_layers):
            x, new = decoder.layers(x, (*of_layers, sliding), reading)
            x = decoder.final_norm(x)
            return x, (x, new)

        of_layers = _split(of_layers, passes + periods)
        if passes:
            one_pass = nn.scan(
                one_pass,
                variable_broadcast="params",
                split_rngs={"params": False},
                length=c.num_passes,
                unroll=c.num_passes if self.unroll_layers else 1,
            )
        _, (hidden, new) = one_pass(self, x, of_layers)
        return (hidden if passes else hidden[None]), _join(new, len(passes + periods) + 1)


def _at(tree: Any, index: int) -> Any:
    """One element of the leading axis of every leaf."""
    return jax.tree.map(lambda a: a[index], tree)


def _split(tree: Any, sizes: tuple[int, ...]) -> Any:
    """The leading axis of every leaf as these axes and one more for what is left of it."""
    return jax.tree.map(
        lambda a: a.reshape(*sizes, a.shape[0] // math.prod(sizes), *a.shape[1:]), tree
    )


def _join(tree: Any, axes: int) -> Any:
    """The first axes of every leaf as one."""
    return jax.tree.map(lambda a: a.reshape(math.prod(a.shape[:axes]), *a.shape[axes:]), tree)
