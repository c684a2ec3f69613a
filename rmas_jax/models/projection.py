"""Projections of activations: products with kernels [out, in]."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import SymbolicZero

from rmas_jax.partition import Partition

OVER_LAST = (((1,), (1,)), ((), ()))  # of two matrices


class LowRankKernel(struct.PyTreeNode):
    """A kernel with a low-rank update, of which gradients reach the two factors alone.

    Products are those with the merged kernel. A gradient through it would be of the kernel's size
    before it is one of the factors, at the cost of a further product.
    """

    merged: jax.Array  # [*out, *in]; the first leaf: flax compares its shape with the parameter's
    down: jax.Array  # [rank, in]
    up: jax.Array  # [out, rank], scaled

    def astype(self, dtype: Any) -> LowRankKernel:
        """The same in another dtype."""
        return jax.tree.map(lambda x: x.astype(dtype), self)


def project(
    x: jax.Array, kernel: jax.Array | LowRankKernel, partition: Partition, *, dtype: Any = None
) -> jax.Array:
    """The product over the axes of `x` after its second and the last ones of a kernel.

    On one device, and of single positions, it is one of matrices: for one row, XLA makes slower
    sums of other products on a GPU, and reads more on a TPU. On a mesh, texts are multiplied with
    the kernel as it is: a gradient through rounds would keep kernels as matrices beside those that
    are gathered.

    Args:
      x: [B, T, *in].
      kernel: [*out, *in], as a checkpoint stores it.
      partition: of both.
      dtype: of the sums and of the result; default: that of `x`.

    Returns:
      [B, T, *out].
    """
    if isinstance(kernel, LowRankKernel):
        return _with_low_rank(x, kernel.merged, kernel.down, kernel.up, partition, dtype)
    batch, time, *inputs = x.shape
    outputs = kernel.shape[: kernel.ndim - len(inputs)]
    if not (partition.is_one_device or time == 1):
        axes = range(2, x.ndim), range(len(outputs), kernel.ndim)
        return jax.lax.dot_general(x, kernel, (axes, ((), ())), preferred_element_type=dtype)

    rows, kernel = (m.reshape(-1, math.prod(inputs)) for m in (x, kernel))
    multiply = _kernel_first if time == 1 and partition.is_on_cpu else _rows_first
    return multiply(rows, kernel, dtype).reshape(batch, time, *outputs)


def _rows_first(rows: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    return jax.lax.dot_general(rows, kernel, OVER_LAST, preferred_element_type=dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kernel_first(rows: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """The same: a CPU reads a kernel up to twice as fast when it comes first."""
    return _turned(rows, kernel, dtype)


def _turned(rows: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    # XLA would put the kernel last again, if it saw the transposition.
    return jax.lax.optimization_barrier(_rows_first(kernel, rows, dtype)).T


def _of_tangents(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Values, which a gradient may store, and tangents by `_rows_first`.

    The transposes of the turned product would read kernels by columns.
    """
    (rows, kernel), (d_rows, d_kernel) = primals, tangents
    terms = [
        _rows_first(*factors, dtype)
        for factors in ((d_rows, kernel), (rows, d_kernel))
        if not any(isinstance(factor, SymbolicZero) for factor in factors)
    ]
    return _turned(rows, kernel, dtype), sum(terms[1:], start=terms[0])


_kernel_first.defjvp(_of_tangents, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _with_low_rank(
    x: jax.Array,
    merged: jax.Array,
    down: jax.Array,
    up: jax.Array,
    partition: Partition,
    dtype: Any,
) -> jax.Array:
    """`project` with a merged kernel, of which no gradient is taken."""
    return project(x, merged, partition, dtype=dtype)


def _of_factors(
    partition: Partition, dtype: Any, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    """Values, and tangents of the input and of the factors."""
    (x, merged, down, up), (d_x, _, d_down, d_up) = primals, tangents
    out = project(x, merged, partition, dtype=dtype)

    def by_factors(down: jax.Array, up: jax.Array) -> jax.Array:
        inner = x.reshape(*x.shape[:2], -1) @ down.T
        return (inner @ up.T).reshape(out.shape).astype(out.dtype)

    terms = []
    if not isinstance(d_x, SymbolicZero):
        terms.append(project(d_x, merged, partition, dtype=dtype))
    if not isinstance(d_down, SymbolicZero):
        terms.append(by_factors(d_down, up))
    if not isinstance(d_up, SymbolicZero):
        terms.append(by_factors(down, d_up))
    return out, sum(terms, start=jnp.zeros_like(out))


_with_low_rank.defjvp(_of_factors, symbolic_zeros=True)
