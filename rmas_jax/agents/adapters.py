"""Adapters of an agent: low-rank updates of its matrices, all its weights, or a soft prompt.

An adapter is a pytree of float32 arrays, which training changes, and `adapt(agent)` is the agent
with it, `learning(agent)` the same inside a step, at the least cost of a gradient. The agent
itself stays frozen; its matrices in int8 are dequantised where an adapter replaces them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rmas_jax.agents.agent import Agent
from rmas_jax.config import ConfigError, TuningConfig
from rmas_jax.host.errors import shown
from rmas_jax.models.int8 import dequantised
from rmas_jax.models.projection import LowRankKernel
from rmas_jax.models.weights import Weight, weight_table
from rmas_jax.sharding import replicated, state_shardings


class Adapter(Protocol):
    """A pytree of trained arrays, float32."""

    def adapt(self, agent: Agent) -> Agent:
        """The agent with the adapter."""

    def learning(self, agent: Agent) -> Agent:
        """The same inside a loss, whose gradient is to be that of the adapter."""


class LoRA(struct.PyTreeNode):
    """Low-rank updates of matrices: W + scale * B A (arXiv 2106.09685), in torch's orientation."""

    down: dict[str, jax.Array]  # A by the matrix's path, [L, rank, in]
    up: dict[str, jax.Array]  # B, [L, out, rank]
    scale: float = struct.field(pytree_node=False)  # alpha / rank

    def adapt(self, agent: Agent) -> Agent:
        """The agent with merged matrices, computed in float32 and in the agent's dtype."""
        return self._with_kernels(agent, lambda merged, down, up: merged)

    def learning(self, agent: Agent) -> Agent:
        """The same, with the factors beside each matrix: their gradients need none of its size."""

        def kernel(merged: jax.Array, down: jax.Array, up: jax.Array) -> LowRankKernel:
            return LowRankKernel(jax.lax.stop_gradient(merged), down, up)

        return self._with_kernels(agent, kernel)

    def _with_kernels(self, agent: Agent, make: Callable[..., Any]) -> Agent:
        params, table = flatten_dict(agent.params, sep="/"), linear_weights(agent)
        for path, down in self.down.items():
            frozen, up = dequantised(params[path]), self.scale * self.up[path]
            update = jnp.einsum("lor,lri->loi", up, down, precision="highest")
            merged = frozen.astype(jnp.float32) + table[path].from_stored(update)
            params[path] = make(merged.astype(frozen.dtype), down, up)
        return agent.replace(params=unflatten_dict(params, sep="/"))


class FullWeights(struct.PyTreeNode):
    """All weights of an agent, as float32 masters."""

    params: Any  # as in `Agent.params`

    def adapt(self, agent: Agent) -> Agent:
        """The agent with these weights, in its dtype."""
        return agent.replace(params=jax.tree.map(lambda x: x.astype(agent.dtype), self.params))

    learning = adapt


class SoftPrompt(struct.PyTreeNode):
    """Vectors that an agent reads before every prompt (arXiv 2104.08691)."""

    vectors: jax.Array  # [K, D]

    def adapt(self, agent: Agent) -> Agent:
        """The agent that reads the vectors first."""
        return agent.replace(soft_prompt=self.vectors.astype(agent.dtype))

    learning = adapt


def linear_weights(agent: Agent) -> dict[str, Weight]:
    """The matrices of all linear layers by path, which LoRA can update: not the embeddings."""
    table = weight_table(agent.config)
    return {"/".join(weight.path): weight for weight in table if weight.is_linear}


def start_lora(agent: Agent, config: TuningConfig, key: jax.Array, vectors: int) -> LoRA:
    """Factors whose product is 0: A is uniform in +-1/sqrt(in), as in torch and peft, and B is 0.

    Raises:
      ConfigError: the agent has no such matrix.
    """
    table = linear_weights(agent)
    known = dict.fromkeys(weight.row.path for weight in table.values())
    for i, name in enumerate(config.matrices):
        if name not in known:
            raise ConfigError(
                f"tuning: {config.kind}: matrices.{i} must be one of {', '.join(known)}, "
                f"got {shown(name)}"
            )
    chosen = {p: w for p, w in table.items() if w.row.path in (config.matrices or known)}
    down, up = {}, {}
    for (path, weight), own in zip(chosen.items(), jax.random.split(key, len(chosen)), strict=True):
        layers, (fan_out, fan_in) = len(weight.names), weight.stored_shape
        bound = fan_in**-0.5
        shape = (layers, config.rank, fan_in)
        down[path] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
        up[path] = jnp.zeros((layers, fan_out, config.rank))
    return LoRA(down, up, config.alpha / config.rank)


def start_full(agent: Agent, config: TuningConfig, key: jax.Array, vectors: int) -> FullWeights:
    """The agent's weights."""
    params = flatten_dict(agent.params, sep="/")
    masters = {path: dequantised(x).astype(jnp.float32) for path, x in params.items()}
    return FullWeights(unflatten_dict(masters, sep="/"))


def start_soft_prompt(
    agent: Agent, config: TuningConfig, key: jax.Array, vectors: int
) -> SoftPrompt:
    """Input embeddings of drawn tokens."""
    count = vectors if config.vectors is None else config.vectors
    ids = jax.random.randint(key, (1, count), 0, agent.config.vocab_size)
    return SoftPrompt(agent.embed(ids)[0].astype(jnp.float32))


STARTS: dict[str, Callable[[Agent, TuningConfig, jax.Array, int], Adapter]] = {
    "lora": start_lora,
    "full": start_full,
    "soft_prompt": start_soft_prompt,
}


def start_adapter(agent: Agent, config: TuningConfig, *, key: jax.Array, vectors: int) -> Adapter:
    """An adapter before its training.

    Args:
      agent: the agent to tune.
      config: kind and size of the adapter.
      key: PRNG key.
      vectors: of a soft prompt, where the configuration names no number.

    Raises:
      ConfigError: the agent lacks a matrix of `config.matrices`.
    """
    return STARTS[config.kind](agent, config, key, vectors)


def named_arrays(adapter: Adapter) -> dict[str, jax.Array]:
    """The arrays of an adapter by name, such as "down/layers/attention/q_kernel"."""
    leaves, _ = jax.tree.flatten_with_path(adapter)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


class Tuned(NamedTuple):
    """An agent with its adapter."""

    agent: Agent
    parameters: int  # trained ones


def tuned_agent(agent: Agent, adapter: Adapter, mesh: Mesh | None = None) -> Agent:
    """The agent with an adapter (host arrays), on the agent's devices."""
    kind = type(adapter)
    if mesh is None:
        return jax.jit(kind.adapt)(adapter, agent)
    placed = jax.device_put(adapter, state_shardings(adapter, mesh))
    abstract = jax.eval_shape(kind.adapt, adapter, agent)
    table = {"/".join(weight.path): weight for weight in weight_table(agent.config)}
    shardings = {
        path: jax.tree.map(lambda x, weight=table[path]: weight.sharding(mesh, x.shape), param)
        for path, param in flatten_dict(abstract.params, sep="/").items()
    }
    out = jax.tree.map(lambda _: replicated(mesh), abstract)
    out = out.replace(params=unflatten_dict(shardings, sep="/"))
    return jax.jit(kind.adapt, out_shardings=out)(placed, agent)
