"""Projections of activations: products with kernels [out, in]."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from rmas_jax.partition import Partition

OVER_LAST = (((1,), (1,)), ((), ()))  # of two matrices


def project(
    x: jax.Array, kernel: jax.Array, partition: Partition, *, dtype: Any = None
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
