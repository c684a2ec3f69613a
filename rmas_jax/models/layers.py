"""Layers of the decoder: attention or a linear layer, a feed-forward, and their norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rmas_jax.models.activations import ACTIVATIONS
from rmas_jax.models.attention import attend, rotary
from rmas_jax.models.cache import ByLayer, cached_heads
from rmas_jax.models.config import DecoderConfig
from rmas_jax.models.deltanet import GatedDeltaNet
from rmas_jax.models.int8 import as_array
from rmas_jax.models.norms import inverse_root
from rmas_jax.models.projection import project
from rmas_jax.models.rope import rotary_frequencies
from rmas_jax.models.weights import ROWS, used_parameter
from rmas_jax.partition import ONE_DEVICE, Partition

KeysValues = tuple[jax.Array, jax.Array]  # of one block, each [B, K, S, H]
Rope = tuple[jax.Array, jax.Array]  # frequencies [R/2], and the factor on sine and cosine
# Products of a layer that a gradient may store instead of recomputing them -> JAX's policy.
STORED = {"all": "dots_saveable", "with weights": "dots_with_no_batch_dims_saveable"}
# A layer's share of the cache: blocks and linear state, each None if its kind of layer has none;
# and whether the layer slides.
OfLayer = tuple[Any, Any, jax.Array]


class CallContext(NamedTuple):
    """Inputs that all layers of a call share."""

    positions: jax.Array  # [B, T] int32
    valid: jax.Array  # [B, T] bool
    # Keys visible to each position: per block of the cache [B, T, S] bool, and of the call itself.
    visible: tuple[jax.Array, ...]
    near: tuple[jax.Array, ...]  # the same, in a sliding layer
    fresh: jax.Array | None  # [B, T] bool; first positions of packed texts


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    config: DecoderConfig
    row: str  # of its weight in the table
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        weight = used_parameter(self, self.row).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * inverse_root(jnp.mean(x32 * x32, axis=-1, keepdims=True), c.norm_eps)
        weight = jnp.expand_dims(weight + float(c.unit_offset_norm), tuple(range(x.ndim - 1)))
        return (normed * weight).astype(x.dtype)


def normed(module: Any, path: str, x: jax.Array) -> jax.Array:
    """`x` after the norm at this path, if the decoder has it; called in its parent module."""
    row = ROWS[f"{path}/weight"]
    if not row.is_in(module.config):
        return x
    norm = RMSNorm(module.config, row.path, module.partition, name=path.rpartition("/")[2])
    return norm(x)


def biased(module: Any, path: str, out: jax.Array) -> jax.Array:
    """`out` plus the bias at this path for its last axes, if the decoder has it."""
    if not ROWS[path].is_in(module.config):
        return out
    bias = used_parameter(module, path).astype(out.dtype)
    return out + bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)


class Attention(nn.Module):
    """Grouped-query attention over blocks of the cache and the positions of the call."""

    config: DecoderConfig
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rope: Rope,
        blocks: tuple[KeysValues, ...],
        positions: jax.Array,
        visible: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, KeysValues]:
        """Attends from the positions of this call.

        Args:
          x: [B, T, D].
          rope: see `Rope`.
          blocks: of the cache.
          positions: [B, T] int32.
          visible: see `CallContext`.

        Returns:
          [B, T, D], and the keys and values of these positions, of `cached_heads` heads.
        """
        c, on = self.config, self.partition
        x = on.constrain(x, "rows", None, "embed")

        def heads_of(name: str) -> jax.Array:
            kernel = as_array(used_parameter(self, f"attention/{name}_kernel"), x)
            out = project(x, kernel, on)
            return by_heads(biased(self, f"attention/{name}_bias", out))

        def by_heads(x: jax.Array) -> jax.Array:
            return on.constrain(x, "batch", None, "heads", None)

        if c.gated_attention:
            query, gate = jnp.split(heads_of("q"), 2, axis=-1)
        else:
            query = heads_of("q")
        key, value = (repeated(heads_of(name), cached_heads(c, on)) for name in ("k", "v"))
        key, value = by_heads(key), by_heads(value)
        query = normed(self, "attention/q_norm", query)
        key = normed(self, "attention/k_norm", key)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        # Scaled in float32: a scale rounded to bfloat16 would bias all logits.
        query = (rotary(query.astype(jnp.float32), positions, *rope) * scale).astype(x.dtype)
        key, value = (
            on.constrain(x.swapaxes(1, 2), "batch", "heads", None, None)
            for x in (rotary(key, positions, *rope), value)
        )
        keys, values = zip(*blocks, (key, value), strict=True)
        mixed = attend(query, keys, values, visible)
        if c.gated_attention:
            mixed = mixed * jax.nn.sigmoid(gate)
        mixed = on.constrain(by_heads(mixed), "rows", None, "heads", None)
        kernel = as_array(used_parameter(self, "attention/o_kernel"), x)
        out = project(mixed, kernel, on)
        return biased(self, "attention/o_bias", out), (key, value)


def repeated(x: jax.Array, heads: int) -> jax.Array:
    """Keys or values [B, T, K, H] with each head repeated to this number, see `cached_heads`."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


class FeedForward(nn.Module):
    """Gated feed-forward: down(act(gate(x)) * up(x)), in some models with biases."""

    config: DecoderConfig
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, on = self.config, self.partition
        gate, up, down = (
            as_array(used_parameter(self, f"ffn/{name}_kernel"), x)
            for name in ("gate", "up", "down")
        )
        act = ACTIVATIONS[c.activation].apply
        hidden = act(biased(self, "ffn/gate_bias", project(x, gate, on)))
        hidden = hidden * biased(self, "ffn/up_bias", project(x, up, on))
        return biased(self, "ffn/down_bias", project(hidden, down, on))


class Layer(nn.Module):
    """One decoder layer; the body of the scan over layers if all have one kind."""

    config: DecoderConfig
    linear: bool = False
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(
        self, x: jax.Array, of_layer: OfLayer, context: CallContext
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Returns the next layer's input, and the layer's new keys and values and linear state."""
        c, on = self.config, self.partition
        blocks, state, sliding = of_layer
        new = None

        def by_rows(x: jax.Array) -> jax.Array:
            return on.constrain(x, "rows", None, None)

        x = by_rows(x)
        mixed = by_rows(normed(self, "attention_norm", x))  # whole before its parts are used
        if self.linear:
            mixed, state = GatedDeltaNet(c, on, name="linear")(
                mixed, context.valid, state, context.fresh
            )
        else:
            rope, visible = self._rope(sliding), context.visible
            if c.sliding_layers:
                visible = tuple(
                    jnp.where(sliding, near, all_)
                    for near, all_ in zip(context.near, visible, strict=True)
                )
            mixed, new = Attention(c, on, name="attention")(
                mixed, rope, blocks, context.positions, visible
            )
        x = by_rows(x + normed(self, "attention_out_norm", by_rows(mixed)))
        out = by_rows(FeedForward(c, on, name="ffn")(normed(self, "ffn_norm", x)))
        return by_rows(x + normed(self, "ffn_out_norm", out)), (new, state)

    def _rope(self, sliding: jax.Array) -> Rope:
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
    """One period of layer kinds; the body of the scan over layers."""

    config: DecoderConfig
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(
        self, x: jax.Array, of_period: OfLayer, context: CallContext
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """As `Layer`, with a leading axis of layers; attention and linear layers are separate."""
        blocks, state, sliding = of_period
        news: list[KeysValues] = []
        states: list[tuple[jax.Array, jax.Array]] = []
        for place, linear in enumerate(self.config.linear_layers[: self.config.period]):
            layer = Layer(self.config, linear, self.partition, name=f"place_{place}")
            if linear:
                mine = (None, _at(state, len(states)), sliding[place])
            else:
                mine = (_at(blocks, len(news)), None, sliding[place])
            x, (new, new_state) = layer(x, mine, context)
            if linear:
                states.append(new_state)
            else:
                news.append(new)
        return x, tuple(jax.tree.map(lambda *xs: jnp.stack(xs), *kind) for kind in (news, states))


def late(layer: type[Layer] | type[Period]) -> type[nn.Module]:
    """The layer, with weights that wait for its input where they are gathered at their use.

    A gather that depends on weights alone would leave every loop around the layers: a gradient
    through several rounds kept all weights of all agents whole. Parameters and results are those of
    `layer`.
    """

    class Late(layer):  # type: ignore[misc,valid-type]
        def __call__(self, x: jax.Array, *rest: Any) -> Any:
            if self.is_initializing() or not self.partition.gathers_at_use:
                return super().__call__(x, *rest)
            params, _ = jax.lax.optimization_barrier(
                (self.variables["params"], jax.lax.stop_gradient(x))
            )
            now = layer(self.config, partition=self.partition, parent=None)
            return now.apply({"params": params}, x, *rest)

    return Late


def recomputed_layer(config: DecoderConfig, *, stored: str | None) -> type[nn.Module]:
    """A layer, or a period of layers, that a gradient recomputes from its input and what is stored.

    Nested scans copy saved values at every level, which took longer to compile and to run.
    """
    policy = None if stored is None else getattr(jax.checkpoint_policies, STORED[stored])
    layer = late(Layer if config.period == 1 else Period)
    return nn.remat(layer, prevent_cse=False, policy=policy)


class Unrolled(nn.Module):
    """Layers or periods one after another, each with arrays of its own, see `weights.apart`.

    A scan slices stacked weights, which copies them before a product on a GPU.
    """

    config: DecoderConfig
    stored: str | None = None
    partition: Partition = ONE_DEVICE

    @nn.compact
    def __call__(
        self, x: jax.Array, of_layers: OfLayer, context: CallContext
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """As a scan over `Layer` or `Period`."""
        c, news = self.config, []
        body = recomputed_layer(c, stored=self.stored)
        for place in range(c.num_layers // c.period):
            layer = body(c, partition=self.partition, name=f"{place}")
            x, new = layer(x, _at(of_layers, place), context)
            news.append(new)
        return x, jax.tree.map(lambda *xs: jnp.stack(xs), *news)


def _at(tree: Any, index: int) -> Any:
    """One element of the leading axis of every leaf, and of arrays by layer."""
    return jax.tree.map(lambda a: a[index], tree, is_leaf=lambda a: isinstance(a, ByLayer))
