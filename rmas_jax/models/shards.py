"""Reads a device's share of a parameter from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.weights import Weight

Index = tuple[slice, ...]  # a range in every dimension, with both ends


def closed(index: Sequence[slice], shape: Sequence[int]) -> Index:
    """A device's index with both ends of every range filled in."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def read_part(weight: Weight, stored: Any, index: Index) -> np.ndarray:
    """Part of a parameter of one layer; reads little more of the stored tensor than needed.

    Dimensions that the stored tensor joins, such as heads and their size, are nested blocks in it:

        (N H), 2 of 3 heads, half of H:    [h h . . | h h . . | . . . .]
        is read as whole heads             [h h h h | h h h h]              and cut afterwards

    Args:
      weight: the row of its table, with sizes.
      stored: returns parts of the tensor for tuples of slices, as `safe_open(...).get_slice`.
      index: the part of the parameter.
    """
    row, sizes = weight.row, weight.sizes
    wanted = dict(zip(row.dims, index, strict=True))
    ranges = []
    for first, *others in row.stored_dims:
        part, block = wanted.get(first, slice(0, 1)), math.prod(sizes[d] for d in others)
        ranges.append(slice(part.start * block, part.stop * block))
        sizes[first] = part.stop - part.start
        wanted[first] = slice(None)
    kept = [d for d in row.flat_dims if d in row.dims]  # the others are of size 1
    split = stored[tuple(ranges)].reshape([sizes[d] for d in kept])
    return split.transpose([kept.index(d) for d in row.dims])[tuple(wanted[d] for d in row.dims)]


def read_shard(
    weight: Weight, index: Index, get_slice: Callable[[str], Any], dtype: np.dtype
) -> np.ndarray:
    """A device's share of one parameter, all its layers, on the host.

    Args:
      weight: the row of its table, with sizes.
      index: the share; begins with the range of layers, if any.
      get_slice: from the name of a tensor to an argument of `read_part`.
      dtype: of the result.

    Raises:
      CheckpointError: a number is beyond the range of `dtype`; the message names the tensor.
    """
    if not weight.is_stacked:
        (name,) = weight.names
        return _cast(read_part(weight, get_slice(name), index), dtype, name)
    layers, *rest = index
    out = np.empty([part.stop - part.start for part in index], dtype)
    for row, name in enumerate(weight.names[layers]):
        out[row] = _cast(read_part(weight, get_slice(name), tuple(rest)), dtype, name)
    return out


def _cast(part: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A part of the tensor `name` in a dtype; its numbers must be within the dtype's range."""
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(part, dtype)
    into = jnp.finfo(dtype)
    if into.maxexp < jnp.finfo(part.dtype).maxexp and not np.isfinite(out).all():
        raise CheckpointError(
            f"{name} must be finite in {dtype.name} (at most {float(into.max):.5g}), got NaN or "
            "larger numbers; use a wider dtype"
        )
    return out
