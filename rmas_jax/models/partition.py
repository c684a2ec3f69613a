"""Which logical axes a decoder's parameters have, and what of a checkpoint a shard is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmas_jax.models.weights import CheckpointError, Weight

HEADS, KV_HEADS = ("heads", "head_dim"), ("kv_heads", "head_dim")
# The last two names of a parameter's path -> the logical axis of each dimension, without that of
# layers. What is not here is small, or has no axis that devices could share: each has it whole.
LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    "embedding": ("vocab", "embed"),
    "unembed_kernel": ("embed", "vocab"),
    "attention/q_kernel": ("embed", *HEADS),
    "attention/k_kernel": ("embed", *KV_HEADS),
    "attention/v_kernel": ("embed", *KV_HEADS),
    "attention/q_bias": HEADS,
    "attention/k_bias": KV_HEADS,
    "attention/v_bias": KV_HEADS,
    "attention/o_kernel": (*HEADS, "embed"),
    "ffn/gate_kernel": ("embed", "ffn"),
    "ffn/up_kernel": ("embed", "ffn"),
    "ffn/down_kernel": ("ffn", "embed"),
    "ffn/gate_bias": ("ffn",),
    "ffn/up_bias": ("ffn",),
    # Queries, keys and values lie side by side in one axis, and parts of it would cut across them.
    "linear/qkv_kernel": ("embed", None),
    "linear/gate_kernel": ("embed", *HEADS),
    "linear/rate_kernel": ("embed", "heads"),
    "linear/decay_kernel": ("embed", "heads"),
    "linear/out_kernel": (*HEADS, "embed"),
}

Index = tuple[slice, ...]  # a range in every dimension, with both ends


def logical_axes(weight: Weight) -> tuple[str | None, ...]:
    """The logical axis of each dimension of a parameter, that of layers included."""
    axes = LOGICAL_AXES.get("/".join(weight.path[-2:]), (None,) * len(weight.shape))
    return ("layers", *axes) if weight.is_stacked else axes


def closed(index: Sequence[slice], shape: Sequence[int]) -> Index:
    """A device's index with both ends of every range filled in."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def read_part(weight: Weight, stored: Any, index: Index) -> np.ndarray:
    """Part of a parameter (of one layer), reading little more of the stored tensor than it needs.

    Args:
      weight: its row in the weight table.
      stored: gives parts of the tensor for tuples of slices, as `safe_open(...).get_slice` does.
      index: which part of the parameter.
    """
    turned = weight.transform == "transpose"
    if not turned and weight.transform != "reshape":  # a transform that needs the whole tensor
        return weight.load(stored[(slice(None),) * len(weight.stored_shape)])[index]
    sizes = weight.stored_shape[::-1] if turned else weight.stored_shape
    groups = _groups(sizes, weight.shape)
    ranges, shape, inside = [], [], []
    for dimensions in groups:
        # Dimensions that share a stored one: the first counts blocks of all the others.
        first, *others = dimensions or (None,)
        block = math.prod(weight.shape[d] for d in others)
        part = slice(0, 1) if first is None else index[first]
        ranges.append(slice(part.start * block, part.stop * block))
        for d in dimensions:
            shape.append(part.stop - part.start if d == first else weight.shape[d])
            inside.append(slice(None) if d == first else index[d])
    array = stored[tuple(ranges[::-1] if turned else ranges)]
    return (array.T if turned else array).reshape(shape)[tuple(inside)]


def _groups(sizes: Sequence[int], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Which dimensions of `shape`, in order, each of the stored `sizes` was split into."""
    groups, at = [], 0
    for size in sizes:
        start = at
        while math.prod(shape[start:at]) < size:
            at += 1
        groups.append(tuple(range(start, at)))
    for d in range(at, len(shape)):  # of size 1: no stored dimension was needed for it
        groups[-1] += (d,)
    return groups


def read_shard(
    weight: Weight,
    index: Index,
    names: Sequence[str],
    get_slice: Callable[[str], Any],
    dtype: np.dtype,
) -> np.ndarray:
    """A device's share of one parameter, all its layers, on the host.

    Args:
      weight: its row in the weight table.
      index: the share, with the range of layers in front where there are any.
      names: of the tensors in the checkpoint, in the order of the layers.
      get_slice: from such a name to what `read_part` takes.
      dtype: of the result.

    Raises:
      CheckpointError: a number is beyond the range of `dtype`; the message names the tensor.
    """
    if not weight.is_stacked:
        return _cast(read_part(weight, get_slice(names[0]), index), dtype, names[0])
    layers, *rest = index
    out = np.empty([part.stop - part.start for part in index], dtype)
    for row, name in enumerate(names[layers]):
        out[row] = _cast(read_part(weight, get_slice(name), tuple(rest)), dtype, name)
    return out


def _cast(part: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A part of the tensor `name` in a dtype whose range its numbers must not leave."""
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(part, dtype)
    into = jnp.finfo(dtype)
    if into.maxexp < jnp.finfo(part.dtype).maxexp and not np.isfinite(out).all():
        raise CheckpointError(
            f"{name}: holds NaN or numbers beyond {float(into.max):.5g}, the largest of "
            f"{dtype.name}; a wider dtype keeps them"
        )
    return out
