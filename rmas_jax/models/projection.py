"""Projections of activations: products with kernels [out, in]."""

from __future__ import annotations

import math
from typing import Any

import jax

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
    if time == 1 and partition.is_on_cpu:
        # A CPU reads a kernel up to twice as fast when it comes first (docs/benchmarks/log.md); XLA
        # would put it last again, if it saw the transposition.
        out = jax.lax.dot_general(kernel, rows, OVER_LAST, preferred_element_type=dtype)
        out = jax.lax.optimization_barrier(out).T
    else:
        out = jax.lax.dot_general(rows, kernel, OVER_LAST, preferred_element_type=dtype)
    return out.reshape(batch, time, *outputs)
