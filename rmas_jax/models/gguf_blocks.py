"""Values of tensors in GGUF files: rows of blocks, each with its scales, by the package `gguf`."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmas_jax.models.errors import UnsupportedModelError

# Types of tensors that llama.cpp writes for weights, and that `gguf.dequantize` reads.
KINDS = (
    *("F32", "F16", "BF16"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)


def require_gguf() -> Any:
    """The package `gguf`.

    Raises:
      ImportError: it is missing; names the extra to install.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            'GGUF files need gguf, which is not installed; pip install "rmas_jax[gguf]"'
        ) from error
    return gguf


def kind_of(number: int, *, where: str) -> str:
    """Name of a type of tensors, of KINDS, from its number in a file.

    Raises:
      UnsupportedModelError: the type is not supported; the message starts with `where`.
    """
    try:
        name = require_gguf().GGMLQuantizationType(number).name
    except ValueError:
        name = f"type {number}"
    if name not in KINDS:
        raise UnsupportedModelError(
            f"{where}: quantisation must be one of {', '.join(KINDS)}, got {name}"
        )
    return name


def row_bytes(kind: str, columns: int) -> int | None:
    """Bytes of a row; None where its blocks do not fill it."""
    gguf = require_gguf()
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return None if columns % values else columns // values * size


def dequantised(rows: np.ndarray, kind: str) -> np.ndarray:
    """The values of rows, [R, columns] float32, from their bytes, [R, `row_bytes`] uint8."""
    gguf = require_gguf()
    return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])
