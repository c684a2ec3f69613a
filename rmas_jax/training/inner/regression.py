"""Parallel training of links, on states that stay on the host."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.config import InnerConfig
from rmas_jax.links import LinkConfig, apply_link
from rmas_jax.planning.executables import ahead_of_time
from rmas_jax.training.inner.step import LinkState, UpstreamLink, regress_block, start_link
from rmas_jax.training.states.token_states import TokenStates

BLOCK_BYTES = 2**26  # per transfer to a device
regress_jitted = ahead_of_time(
    jax.jit(regress_block, static_argnums=(0, 1), donate_argnums=2), static=("link", "config")
)
_send = jax.jit(apply_link, static_argnums=0)


class Pairs(NamedTuple):
    """Inputs of a link and their targets."""

    states: TokenStates
    numbers: np.ndarray  # [m] indices of states
    ids: np.ndarray  # [m] tokens that they predict, as ids of the receiver
    table: np.ndarray  # [V, D'] the receiver's input embeddings

    @property
    def bytes(self) -> int:
        """Bytes of one pair."""
        return self.states.parts[0][:1].nbytes + self.table[:1].nbytes

    def take(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States [..., D] and embeddings [..., D'] of pairs [...]."""
        return self.states.take(self.numbers[drawn]), self.table[self.ids[drawn]]


@dataclasses.dataclass
class LinkTraining:
    """One link in training on its own device, a block of steps at a time.

    The host gathers the rows of a block while the device works on the previous one: neither holds
    more than two, for any number of pairs. All blocks have one shape, so that a link compiles once.
    """

    pairs: Pairs
    config: InnerConfig
    device: jax.Device
    drawn: np.ndarray  # [steps, batch_size] indices of each step's pairs
    block: int  # steps per block
    step: Callable[..., tuple[LinkState, dict[str, jax.Array]]]  # of a state and a block
    state: LinkState
    curves: list[dict[str, jax.Array]] = dataclasses.field(default_factory=list)  # of blocks sent

    def advance(self) -> int:
        """Sends the next block; returns its number of steps, 0 after the last."""
        drawn = self.drawn[len(self.curves) * self.block :][: self.block]
        if not len(drawn):
            return 0
        if len(self.curves) > 1:
            jax.block_until_ready(self.curves[-2])
        # Padding rows fill up the last block; they are not read.
        rows = np.resize(drawn, (self.block, self.config.batch_size))
        hidden, target = jax.device_put(self.pairs.take(rows), self.device)
        self.state, curves = self.step(self.state, hidden, target)
        self.curves.append(curves)
        return len(drawn)

    def result(self) -> tuple[Any, dict[str, np.ndarray]]:
        """The parameters, and curves {"loss", "grad_norm"} [steps], on the host."""
        params, curves = jax.device_get((self.state.params, self.curves))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[: self.config.steps], *curves)
        return params, joined


def start_training(
    link: LinkConfig,
    params: Any,
    pairs: Pairs,
    config: InnerConfig,
    *,
    key: jax.Array,
    device: jax.Device,
    upstream: UpstreamLink | None = None,
) -> LinkTraining:
    """A link's training before its first step, with its state on the device.

    Args:
      link: an inner or an outer link.
      params: its initial parameters; copied.
      pairs: training pairs, drawn with replacement; at least one.
      config: of the regression; at least one step.
      key: of the row draws, made all at once, and of the noise.
      device: of parameters and blocks.
      upstream: a link to apply to states first.
    """
    shape = (config.steps, config.batch_size)
    drawn = np.asarray(jax.random.randint(key, shape, 0, len(pairs.ids)))
    noise = np.float32(config.noise * _rms(pairs, upstream) if config.noise else 0.0)
    key, upstream = jax.device_put((key, upstream), device)
    return LinkTraining(
        pairs=pairs,
        config=config,
        device=device,
        drawn=drawn,
        block=steps_per_block(config, pairs.bytes),
        step=functools.partial(
            regress_jitted, link, config, key=key, noise=noise, upstream=upstream
        ),
        state=jax.device_put(start_link(jax.tree.map(jnp.copy, params), config), device),
    )


def train_side_by_side(
    trainings: Mapping[str, LinkTraining], report: Callable[[int], Any]
) -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    """Sends blocks in turn, calls `report` with their steps; returns every link's result."""
    while steps := sum(training.advance() for training in trainings.values()):
        report(steps)
    return {name: training.result() for name, training in trainings.items()}


def steps_per_block(config: InnerConfig, pair_bytes: int) -> int:
    """Number of steps whose rows fit into `BLOCK_BYTES`, at least one; balances the blocks."""
    most = max(1, BLOCK_BYTES // (config.batch_size * pair_bytes))
    return math.ceil(config.steps / math.ceil(config.steps / most))


def _rms(pairs: Pairs, upstream: UpstreamLink | None) -> float:
    """Root mean square of a link's inputs, over all pairs."""
    total, count = 0.0, 0
    rows = max(1, BLOCK_BYTES // pairs.bytes)
    for start in range(0, len(pairs.numbers), rows):
        read = pairs.states.take(pairs.numbers[start : start + rows])
        if upstream is not None:
            read = np.asarray(_send(upstream.link, upstream.params, read))
        total += float(np.square(read, dtype=np.float32).sum(dtype=np.float64))
        count += read.size
    return math.sqrt(total / count)
