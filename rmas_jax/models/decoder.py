"""One Flax decoder for all families: embed, read, unembed.

Tokens and latent thoughts enter one way, as embeddings. The output is the hidden state after the
final norm: the input of the unembedding, and an agent's latent thought.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rmas_jax.models.cache import (
    Block,
    Cache,
    LinearState,
    append,
    empty_cache,
    known_after,
    read_blocks,
)
from rmas_jax.models.config import DecoderConfig, UnsupportedModelError
from rmas_jax.models.embedding import look_up
from rmas_jax.models.int8 import as_array, dequantised
from rmas_jax.models.layers import CallContext, RMSNorm, Unrolled, recomputed_layer
from rmas_jax.models.projection import project
from rmas_jax.models.rope import BOUNDED
from rmas_jax.models.vocabulary import check_array
from rmas_jax.models.weights import parameter, used
from rmas_jax.partition import ONE_DEVICE, Partition


class Decoder(nn.Module):
    """A frozen language model as three functions: `embed`, `__call__` and `unembed`.

    Parameters have the dtype they were loaded in, or are int8 (`rmas_jax.models.int8`); activations
    have the dtype of the input embeddings. `unroll_layers` unrolls the layers instead of scanning
    them, with parameters as `weights.apart` splits them: the same numbers, longer compilation,
    faster single steps on a GPU but not on a CPU (docs/benchmarks). `stored` names
    the products of each layer that a gradient stores, one of `layers.STORED`: more memory, and
    weights are read once less. `partition` says where arrays lie on a mesh.
    """

    config: DecoderConfig
    unroll_layers: bool = False
    stored: str | None = None
    partition: Partition = ONE_DEVICE

    def setup(self) -> None:
        c = self.config
        self.embedding = parameter(self, "embedding")
        self.layers: nn.Module
        if self.unroll_layers:
            self.layers = Unrolled(c, self.stored, self.partition)
        else:
            self.layers = nn.scan(
                recomputed_layer(c, stored=self.stored),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=c.num_layers // c.period,
                check_constancy_invariants=self.is_initializing(),  # traces the layers twice
            )(c, partition=self.partition)
        self.final_norm = RMSNorm(c, "final_norm/weight", self.partition)
        if c.has_unembedding:
            self.unembed_kernel = parameter(self, "unembed_kernel")
        if c.loops is not None:
            self.exit_kernel = parameter(self, "exit_kernel")
            self.exit_bias = parameter(self, "exit_bias")

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, T] -> input embeddings [B, T, D], scaled as the family requires.

        Raises:
          CheckpointError: an id has no row in the embedding; under jit, it gives NaN instead.
        """
        check_array(ids, self.config.vocab_size)
        out = dequantised(look_up(self.embedding, ids, self.partition))
        out = out * jnp.asarray(self.config.embed_scale, out.dtype)
        return self.partition.constrain(out, "rows", None, None)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Final-norm hidden states [B, T, D] -> logits [B, T, V], float32."""
        c, on = self.config, self.partition
        if c.has_unembedding:
            kernel = used(self.unembed_kernel, "unembed_kernel", c, on)
        else:
            kernel = used(self.embedding, "embedding", c, on)
        hidden = on.constrain(hidden, "rows", None, None)
        out = project(hidden, as_array(kernel, hidden), on, dtype=jnp.float32)
        return on.constrain(out, "rows", None, "vocab")

    def __call__(self, embeds: jax.Array, valid: jax.Array, cache: Cache | None = None) -> Any:
        """Reads embeddings that continue the sequence in `cache`.

        Args:
          embeds: [B, T, D] input embeddings; tokens and latents alike.
          valid: [B, T] bool, False on padding.
          cache: of all previous positions; its tail must have T free slots (not checked under
            jit: an overflow overwrites the last slots).

        Returns:
          Hidden states after the final norm [B, T, D]; with a cache, (hidden, new cache).

        Raises:
          UnsupportedModelError: the cache has room for more than `config.position_limit` positions.
        """
        start = self._empty_cache(embeds) if cache is None else cache
        hidden, after = self._read(embeds, valid, start)
        return hidden[-1] if cache is None else (hidden[-1], after)

    def read_packed(self, embeds: jax.Array, segments: jax.Array) -> jax.Array:
        """Reads several independent texts per row.

        Args:
          embeds: [B, T, D] input embeddings.
          segments: [B, T] int32, index of the text at each position from 1, 0 on padding; texts are
            contiguous.

        Returns:
          Hidden states after the final norm [B, T, D].
        """
        cache = self._empty_cache(embeds)
        return self._read(embeds, segments > 0, cache, segments)[0][-1]

    def exit_probabilities(self, embeds: jax.Array, valid: jax.Array) -> jax.Array:
        """Probability of each loop to be the last, by the exit gate of a looped decoder.

        Args:
          embeds: [B, T, D] input embeddings.
          valid: [B, T] bool, False on padding.

        Returns:
          [B, T, loops] float32, of sum 1: a loop exits with the gate's probability unless an
          earlier one does; the last one always exits.
        """
        if self.config.loops is None:
            raise ValueError("config.loops must be a number for an exit gate, got None")
        cache = self._empty_cache(embeds)
        hidden, _ = self._read(embeds, valid, cache)
        kernel, bias = self.exit_kernel.astype(jnp.float32), self.exit_bias.astype(jnp.float32)
        gate = jnp.matmul(hidden.astype(jnp.float32), kernel, precision="highest") + bias[0]
        stops = jax.nn.sigmoid(gate[:-1])
        remaining = jnp.cumprod(1 - stops, axis=0)
        first = jnp.ones_like(gate[:1])
        reached = jnp.concatenate([first, remaining])
        return jnp.moveaxis(reached * jnp.concatenate([stops, first]), 0, -1)

    def _empty_cache(self, embeds: jax.Array) -> Cache:
        return empty_cache(
            self.config, *embeds.shape[:2], dtype=embeds.dtype, partition=self.partition
        )

    def _read(
        self,
        embeds: jax.Array,
        valid: jax.Array,
        cache: Cache,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Hidden states after the final norm of every loop [loops, B, T, D], and the new cache.

        With segments (see `read_packed`), `cache` must be empty, and the new one is undefined.
        """
        c, on = self.config, self.partition
        time = embeds.shape[1]
        valid = on.constrain(valid, "batch", None)
        # An attention weight of 0 does not remove NaN or infinity on padding: 0 x NaN is NaN.
        embeds = on.constrain(embeds, "rows", None, None)
        embeds = on.constrain(jnp.where(valid[:, :, None], embeds, 0), "rows", None, None)
        # A linear layer needs adjacent tokens: real tokens move to the right end.
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
        self._check_positions(sum(b.valid.shape[1] for b in (*cache.past, cache.tail)))
        # A position sees all that was written before this call, and of the call what is up to it.
        blocks = read_blocks(cache, time)
        keys_valid = (*(b.valid for b in blocks), valid)
        keys_at = (*(b.positions for b in blocks), positions)
        seen = [jnp.broadcast_to(v[:, None], (v.shape[0], time, v.shape[1])) for v in keys_valid]
        seen[-1] &= jnp.tri(time, dtype=bool)[None]
        if segments is not None:
            seen[-1] &= segments[:, :, None] == segments[:, None, :]
        visible = near = tuple(seen)
        if c.sliding_layers and c.window is not None:
            near = tuple(
                see & (positions[:, :, None] - at[:, None, :] < c.window)
                for see, at in zip(visible, keys_at, strict=True)
            )
        hidden, ((keys, values), state) = self._run_loops(
            embeds,
            (
                tuple((b.keys, b.values) for b in blocks),
                cache.state and (cache.state.conv, cache.state.memory),
            ),
            CallContext(positions, valid, visible, near, fresh),
        )
        if moved:
            back = jnp.argsort(order, axis=1)[None, :, :, None]
            hidden = jnp.take_along_axis(hidden, back, axis=2)
        hidden = on.constrain(hidden, None, "rows", None, None)
        if self.unroll_layers:
            cache = cache.replace(used=known_after(cache.used, hidden))
        after = append(cache, Block(keys, values, valid, positions), partition=on)
        return hidden, after.replace(
            next_position=cache.next_position + counted[:, -1],
            state=state and LinearState(*state),
        )

    def _check_positions(self, slots: int) -> None:
        """Refuses more slots than the rotation has positions; pads count."""
        c = self.config
        if c.position_limit is not None and slots > c.position_limit:
            kinds = {c.rope_scaling.kind, c.local_rope_scaling.kind} & {*BOUNDED}
            raise UnsupportedModelError(
                f"rope_type={min(kinds)!r}: a sequence with its padding must have at most "
                f"{c.position_limit} positions (max_position_embeddings for dynamic, "
                f"original_max_position_embeddings for longrope), got {slots}: beyond, the "
                "frequencies would depend on the longest text of the batch"
            )

    def _run_loops(
        self, x: jax.Array, of_layers: tuple[Any, Any], context: CallContext
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Runs the layers once per loop.

        Args:
          x: [B, T, D].
          of_layers: blocks and linear states of the cache; layers are the leading axis.
          context: see `CallContext`.

        Returns:
          Outputs of the final norm [loops, B, T, D], and new keys and values and states.
        """
        c = self.config
        periods = (c.num_layers // c.period,) if c.period > 1 else ()
        loops = (c.num_loops,) if c.num_loops > 1 else ()
        sliding = jnp.asarray(c.sliding_layers or (False,) * c.num_layers)
        sliding = _split(sliding, periods)

        def one_loop(decoder: Decoder, x: jax.Array, of_layers: Any) -> tuple[jax.Array, Any]:
            x, new = decoder.layers(x, (*of_layers, sliding), context)
            x = decoder.final_norm(x)
            return x, (x, new)

        of_layers = _split(of_layers, loops + periods)
        if loops:
            one_loop = nn.scan(
                one_loop,
                variable_broadcast="params",
                split_rngs={"params": False},
                length=c.num_loops,
                unroll=c.num_loops if self.unroll_layers else 1,
                check_constancy_invariants=self.is_initializing(),
            )
        _, (hidden, new) = one_loop(self, x, of_layers)
        return (hidden if loops else hidden[None]), _join(new, len(loops + periods) + 1)


def _split(tree: Any, sizes: tuple[int, ...]) -> Any:
    """Splits the leading axis of every leaf into axes of these sizes and one for the rest."""
    return jax.tree.map(
        lambda a: a.reshape(*sizes, a.shape[0] // math.prod(sizes), *a.shape[1:]), tree
    )


def _join(tree: Any, axes: int) -> Any:
    """Joins the first axes of every leaf."""
    return jax.tree.map(lambda a: a.reshape(math.prod(a.shape[:axes]), *a.shape[axes:]), tree)
