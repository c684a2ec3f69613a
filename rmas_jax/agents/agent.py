"""An agent: a frozen language model as one value that passes through `jit`, `grad` and `vmap`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.models import (
    Cache,
    Decoder,
    DecoderConfig,
    abstract_agent,
    empty_cache,
    load_pretrained,
    seal,
)
from rmas_jax.models.cache import by_layer
from rmas_jax.models.weights import apart, placed_layers, used
from rmas_jax.partition import Partition


class Agent(struct.PyTreeNode):
    """A frozen causal language model; see `Decoder` for shapes, dtypes and errors.

    It reads tokens and latent thoughts alike, as input embeddings.
    """

    decoder: Decoder = struct.field(pytree_node=False)
    params: Any  # as `Decoder.init` lays them out; float32 or bfloat16, matrices also int8
    soft_prompt: jax.Array | None = None  # [K, D], read before every prompt; None: nothing
    # By policy, the parameters where a phase has them; others are used as they are loaded.
    placed: Mapping[str, Any] = struct.field(default_factory=dict)

    @property
    def config(self) -> DecoderConfig:
        """The decoder's sizes and switches."""
        return self.decoder.config

    @property
    def partition(self) -> Partition:
        """The place of its arrays on a mesh, and the phase that it is in."""
        return self.decoder.partition

    @property
    def width(self) -> int:
        """D, of hidden states and input embeddings."""
        return self.decoder.config.width

    @property
    def dtype(self) -> Any:
        """Dtype of input embeddings, hidden states and caches."""
        return self.params["embedding"].dtype

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token ids [B, T] -> input embeddings [B, T, D]."""
        return self._apply(ids, method="embed")

    def embedding_table(self) -> jax.Array:
        """The input embeddings of all tokens [V, D], as `embed` gives them."""
        return self.embed(jax.numpy.arange(self.config.vocab_size)[None])[0]

    def read(
        self, embeds: jax.Array, valid: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache]:
        """Reads input embeddings [B, T, D] after the content of `cache`.

        Args:
          embeds: [B, T, D].
          valid: [B, T] bool, False on padding.
          cache: its tail has T free positions; None: an empty cache.

        Returns:
          Hidden states after the final norm [B, T, D], and the cache.
        """
        if cache is None:
            cache = self.empty_cache(*embeds.shape[:2])
        return self._apply(embeds, valid, cache)

    def read_packed(self, embeds: jax.Array, segments: jax.Array) -> jax.Array:
        """Reads several independent texts per row [B, T, D] -> [B, T, D]."""
        return self._apply(embeds, segments, method="read_packed")

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] -> logits [B, T, V], float32."""
        return self._apply(hidden, method="unembed")

    def empty_cache(self, batch: int, positions: int) -> Cache:
        """An empty cache whose tail has room for `positions` of B rows."""
        return empty_cache(
            self.config, batch, positions, dtype=self.dtype, partition=self.partition
        )

    def seal(self, cache: Cache, positions: int) -> Cache:
        """Completes the tail of a cache and opens one with room for `positions`."""
        return seal(cache, self.config, positions, partition=self.partition)

    def with_room(self, cache: Cache, positions: int) -> Cache:
        """The same cache with another tail, of `positions` free slots; its own must be empty."""
        batch = cache.next_position.shape[0]
        return cache.replace(tail=self.empty_cache(batch, positions).tail)

    def in_steps(self, cache: Cache) -> Cache:
        """The cache as a loop over steps reads it: apart (`by_layer`) where layers are unrolled."""
        config = self.config
        has_each = self.decoder.unroll_layers and config.period == config.num_loops == 1
        return by_layer(cache) if has_each else cache

    def during(self, phase: str) -> Agent:
        """The agent in a phase, a field of `Policies`; its weights where the policy has them."""
        partition = self.partition.during(phase)
        if partition.mesh is None:
            return self
        decoder = self.decoder.clone(partition=partition)
        return self._with_placed(partition).replace(decoder=decoder)

    def ahead(self, *phases: str) -> Agent:
        """The agent with its weights where these phases have them as they begin, once for all."""
        partitions = map(self.partition.during, phases)
        return functools.reduce(Agent._with_placed, partitions, self)

    def in_training(self) -> Agent:
        """The agent that reads by the policy of training."""
        policies = self.partition.policies
        policies = policies._replace(reading=policies.training)
        partition = dataclasses.replace(self.partition, policies=policies)
        return self.replace(decoder=self.decoder.clone(partition=partition))

    def storing(self, products: str) -> Agent:
        """The agent whose layers store these products for a gradient; see `Decoder`."""
        return self.replace(decoder=self.decoder.clone(stored=products))

    def _with_placed(self, partition: Partition) -> Agent:
        name = partition.policy_name
        if partition.is_one_device or partition.gathers_at_use or name in self.placed:
            return self
        params = placed_layers(self.params, self.config, partition)
        return self.replace(placed={**self.placed, name: params})

    @property
    def _used(self) -> Any:
        """The parameters of this phase."""
        return self.placed.get(self.partition.policy_name, self.params)

    def unrolled(self) -> Agent:
        """The agent with unrolled layers, see `Decoder`; their weights are copied.

        Raises:
          ValueError: it is on several devices.
        """
        if not self.partition.is_one_device:
            raise ValueError("an agent with unrolled layers must be on one device, got a mesh")
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(self.params)):
            place = self.partition.mesh and NamedSharding(self.partition.mesh, PartitionSpec())
            params = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                jax.eval_shape(apart, self.params),
            )
        else:
            params = jax.jit(apart)(self.params)
        return self.replace(decoder=self.decoder.clone(unroll_layers=True), params=params)

    @property
    def layer_bytes(self) -> int:
        """Bytes of the weights of a layer, or of a period of layers."""
        stacked = jax.tree.leaves(self.params["layers"])
        return sum(x.size * x.dtype.itemsize for x in stacked) // stacked[0].shape[0]

    def with_unembedding(self) -> Agent:
        """The agent with its unembedding where the policy has it, once for many calls."""
        path = "unembed_kernel" if self.config.has_unembedding else "embedding"
        weight = used(self._used[path], path, self.config, self.partition)
        name, params = self.partition.policy_name, {**self._used, path: weight}
        return self.replace(placed={**self.placed, name: params})

    def _apply(self, *inputs: Any, method: str | None = None) -> Any:
        """Calls the decoder, or a method of it, with these parameters."""
        with jax.named_scope(method or "read"):  # names in profiles
            return self.decoder.apply({"params": self._used}, *inputs, method=method)


def load_agent(
    source: str | os.PathLike[str],
    dtype: str = "float32",
    mesh: Any = None,
    *,
    is_abstract: bool = False,
    **options: Any,
) -> Agent:
    """A pretrained agent, from a directory or the hub; see `models.load_pretrained`.

    If it is abstract, a `jax.ShapeDtypeStruct` takes the place of each array, and no weight is
    read; see `models.abstract_agent`.
    """
    if is_abstract:
        return Agent(*abstract_agent(source, mesh, dtype=dtype, **options))
    return Agent(*load_pretrained(source, dtype, mesh, **options))
