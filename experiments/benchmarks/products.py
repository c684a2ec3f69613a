"""The practical floor: the fastest products of a team's shapes at some number of rows.

Single steps read each matrix of a body once for a few rows. Which part of the memory's rate
products reach depends on their shape, their number of rows, the layout of the matrix and the
library; the fastest of all in this process bounds what a change of the program alone can gain.

Each product waits for the one before, as in a step. Products that do not wait run side by side, up
to 1.8 times as fast where they are small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from rmas_jax.agents.agent import Agent
from rmas_jax.models.projection import OVER_LAST

NOTHING = 1e-30  # as a factor of a product: too little to change a number
Sizes = tuple[int, int]  # a matrix [in, out]


class Products(NamedTuple):
    """How fast an agent's products of one shape are."""

    sizes: Sizes
    matrices: int  # of a body
    seconds: dict[str, float]  # way -> the least seconds of all of them

    @property
    def best(self) -> str:
        """The fastest way."""
        return min(self.seconds, key=self.seconds.__getitem__)


def body_products(agent: Agent) -> Counter[Sizes]:
    """[in, out] -> number of matrices in all layers, with attention as products of matrices."""
    found: Counter[Sizes] = Counter()
    for path, leaf in jax.tree.leaves_with_path(agent.params["layers"]):
        layers, *axes = leaf.shape
        if len(axes) < 2:
            continue
        outputs = len(axes) - (2 if "o_kernel" in jax.tree_util.keystr(path) else 1)  # [D, N, H]
        found[int(np.prod(axes[outputs:])), int(np.prod(axes[:outputs]))] += layers
    return found


def measure(agents: Iterable[Agent], rows: int, *, torch_device: str | None) -> list[Products]:
    """Seconds of all products of the shapes of these agents, by way.

    A way multiplies x [rows, in] with matrices of its own, as many as one body has: W [in, out], or
    V [out, in]. It has several such sets, as many bytes as the largest body, and takes them in
    turn, so that caches hold no more of them than of a body.
    """
    shapes: Counter[Sizes] = Counter()
    bodies = []
    for agent in agents:
        own = body_products(agent)
        bodies.append(sum(many * inputs * outputs for (inputs, outputs), many in own.items()))
        shapes |= own  # the larger number
        dtype = agent.dtype
    found = []
    for sizes, many in shapes.items():
        sets = max(1, round(max(bodies) / (many * np.prod(sizes))))
        found.append(Products(sizes, many, _seconds(sizes, many, sets, rows, dtype, torch_device)))
    return found


def weight_rate(products: Iterable[Products], dtype: str) -> float:
    """Bytes of weights a second, each product in its fastest way."""
    products = list(products)
    count = sum(np.prod(of.sizes, dtype=float) * of.matrices for of in products)
    return count * jnp.dtype(dtype).itemsize / sum(of.seconds[of.best] for of in products)


def product_rows(products: Iterable[Products], dtype: str) -> Iterable[tuple[str, ...]]:
    """A line of a table per shape: matrices, GB/s by way."""
    for of in products:
        size = np.prod(of.sizes, dtype=float) * of.matrices * jnp.dtype(dtype).itemsize
        rates = (f"{size / seconds / 1e9:.1f}" for seconds in of.seconds.values())
        yield ("x".join(map(str, of.sizes)), str(of.matrices), *rates)


def _seconds(
    sizes: Sizes, many: int, sets: int, rows: int, dtype: Any, torch_device: str | None
) -> dict[str, float]:
    """Seconds of one set of matrices, by way."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, sizes[0]), np.float32)
    weights = [[rng.standard_normal(sizes, np.float32) for _ in range(many)] for _ in range(sets)]
    ways = _jax_ways(x, weights, dtype)
    if torch_device:
        ways |= _torch_ways(x, weights, dtype, torch_device)
    times = harness.in_turn(ways, repeats=9, warm_up=2)
    return {name: min(of) / sets for name, of in times.items()}


def _jax_ways(x: Any, weights: list[list[Any]], dtype: Any) -> dict[str, Callable[[], Any]]:
    x = jnp.asarray(x, dtype)
    plain = [[jnp.asarray(w, dtype) for w in of] for of in weights]
    turned = [[jnp.asarray(w.T, dtype) for w in of] for of in weights]

    def call(product: Callable[..., jax.Array], sets: list[list[jax.Array]]) -> Callable[[], Any]:
        @jax.jit
        def run(x: jax.Array, of: list[jax.Array]) -> jax.Array:
            for w in of:
                x = x + NOTHING * product(x, w)[0, 0]  # the next one waits for it
            return x

        program = harness.compiled(run, x, sets[0])
        return lambda: [program.call(x, of) for of in sets]

    return {
        "x W": call(jnp.matmul, plain),
        "x V'": call(lambda x, v: jax.lax.dot_general(x, v, OVER_LAST), turned),
        "V x'": call(lambda x, v: jax.lax.dot_general(v, x, OVER_LAST), turned),
    }


def _torch_ways(
    x: Any, weights: list[list[Any]], dtype: Any, device: str
) -> dict[str, Callable[[], Any]]:
    import torch

    to = {"device": device, "dtype": getattr(torch, jnp.dtype(dtype).name)}
    row = torch.tensor(x, **to)
    plain = [torch.tensor(w, **to) for of in weights for w in of]
    turned = [torch.tensor(w.T.copy(), **to) for of in weights for w in of]

    def finished() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def linear() -> None:
        for w in turned:
            torch.nn.functional.linear(row, w)
        finished()

    def matmul() -> None:
        for w in plain:
            row @ w
        finished()

    return {"torch x V'": linear, "torch x W": matmul}
