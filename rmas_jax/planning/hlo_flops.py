"""FLOPs of instructions of compiled HLO: dots, convolutions, products in libraries."""

from __future__ import annotations

import functools
import json
import math
import re

import numpy as np

from rmas_jax.planning.hlo_text import Computation, Instruction, Shape

# Passes of a TPU's bfloat16 units for a product of float32 arrays, by its precision.
PASSES = {"default": 1, "high": 3, "highest": 6}


def instruction_flops(computation: Computation, x: Instruction) -> float:
    """FLOPs of a dot or a convolution; 0 of others."""
    if x.opcode == "dot":
        left = computation.operand(x, 0).shapes[0].sizes
        contracted = _numbers(x, "lhs_contracting_dims")
        return 2.0 * x.shapes[0].elements * math.prod(left[dim] for dim in contracted)
    if x.opcode == "convolution":
        return _convolution_flops(computation, x)
    if x.opcode == "custom-call" and "__cublas$" in x.attributes:
        config = json.loads(x.attribute(r"backend_config=(\{.*\})") or "{}")
        numbers = config.get("gemm_backend_config", config).get("dot_dimension_numbers", {})
        left = computation.operand(x, 0).shapes[0].sizes
        contracted = [int(dim) for dim in numbers.get("lhs_contracting_dimensions", ())]
        return 2.0 * x.shapes[0].elements * math.prod(left[dim] for dim in contracted)
    return 0.0


def _numbers(x: Instruction, key: str) -> list[int]:
    found = x.attribute(rf"\b{key}=\{{([\d,]*)\}}")
    return [int(number) for number in found.split(",")] if found else []


def _convolution_flops(computation: Computation, x: Instruction) -> float:
    """FLOPs of a convolution, without those on padding and between dilated entries.

    Compilers for TPUs write dots as convolutions, with batches as dilated dimensions, and multiply
    float32 arrays in passes over parts of them in bfloat16, which are counted.
    """
    labels = x.attribute(r"dim_labels=(\S+?)(?:,|$)")
    assert labels is not None  # every convolution has them
    left_labels, right_labels, out_labels = re.split(r"_|->", labels)
    left, right = (computation.operand(x, place).shapes[0] for place in (0, 1))
    out = x.shapes[0]

    def size(shape: Shape, names: str, label: str) -> int:
        return shape.sizes[names.index(label)]

    window = x.attribute(r"window=\{([^}]*)\}") or ""

    def setting(name: str, default: str, dim: int) -> str:
        found = re.search(rf"\b{name}=(\S+)", window)
        return found[1].split("x")[dim] if found else default

    pairs = 1
    for dim, label in enumerate(sorted(set(out_labels) - {"b", "f"})):
        pairs *= _valid_pairs(
            size(left, left_labels, label),
            size(right, right_labels, label),
            size(out, out_labels, label),
            stride=int(setting("stride", "1", dim)),
            pad=int(setting("pad", "0_0", dim).split("_")[0]),
            left_dilation=int(setting("lhs_dilate", "1", dim)),
            right_dilation=int(setting("rhs_dilate", "1", dim)),
        )
    outputs = size(out, out_labels, "b") * size(out, out_labels, "f")
    summed = size(right, right_labels, "i")
    groups = int(x.attribute(r"batch_group_count=(\d+)") or 1)
    is_float32 = left.dtype == right.dtype == "f32"
    precision = x.attribute(r"operand_precision=\{(\w+)") or "default"
    passes = PASSES[precision] if is_float32 else 1
    return 2.0 * passes * outputs * summed * pairs / groups


@functools.cache
def _valid_pairs(
    left: int,
    right: int,
    out: int,
    *,
    stride: int,
    pad: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs of an output and a kernel entry that meet an entry of the input."""
    at = np.arange(out)[:, None] * stride + np.arange(right)[None] * right_dilation - pad
    inside = (at >= 0) & (at % left_dilation == 0) & (at // left_dilation < left)
    return int(inside.sum())
