"""Matrices of frozen agents in int8, by qwix: a quarter of float32's memory, half of bfloat16's.

Only what is stored changes. A matrix is `qwix.QArray`: int8 values, and one scale for each output
channel of a projection or each row of the embeddings, in the dtype that the decoder computes in;
what it stands for is their product. A layer asks for that with `as_array` where it multiplies, so
that all other matrices stay int8 meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from rmas_jax.models.weights import Weight

# The last two names of a parameter's path -> the axes that share a scale: those that are summed
# over where it is used, or an embedding's. What is not here stays as it is: norms and biases, and
# the small matrices that steer gates and decays.
SHARED_AXES: dict[str, tuple[int, ...]] = {
    "embedding": (1,),
    "unembed_kernel": (0,),
    "attention/q_kernel": (0,),
    "attention/k_kernel": (0,),
    "attention/v_kernel": (0,),
    "attention/o_kernel": (0, 1),
    "ffn/gate_kernel": (0,),
    "ffn/up_kernel": (0,),
    "ffn/down_kernel": (0,),
    "linear/qkv_kernel": (0,),
    "linear/gate_kernel": (0,),
    "linear/out_kernel": (0, 1),
}


def require_qwix() -> None:
    """Raises ImportError, naming the extra to install, where qwix is missing."""
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'weights="int8" needs qwix, which is not installed: pip install "rmas_jax[int8]"'
        ) from error


def is_large(weight: Weight) -> bool:
    """Whether a row of the weight table is a matrix of SHARED_AXES."""
    return "/".join(weight.path[-2:]) in SHARED_AXES


def quantised(weight: Weight, layers: Iterable[jax.Array], dtype: jnp.dtype) -> Any:
    """A matrix in int8, from what a checkpoint has of it.

    Values are rounded to the nearest multiple of their channel's largest magnitude / 127.5. On a
    mesh they stay where they are, and a channel that lies on several devices has one scale.

    Args:
      weight: its row in the weight table.
      layers: float32, one after another; each is let go when the next one is there.
      dtype: of the scales, and so of what the matrix stands for.
    """
    shared = SHARED_AXES["/".join(weight.path[-2:])]
    own = tuple(axis for axis in range(len(weight.shape)) if axis not in shared)
    rounded = [jax.block_until_ready(_quantise(layer, own, dtype)) for layer in layers]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *rounded) if weight.is_stacked else rounded[0]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantise(layer: jax.Array, own: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """A `qwix.QArray` with a scale for every index of the axes `own`."""
    import qwix

    return qwix.quantize(layer, jnp.int8, channelwise_axes=own, scale_dtype=dtype)


def is_quantised(param: Any) -> bool:
    """Whether a parameter is kept in int8."""
    return hasattr(param, "qvalue")


def dequantised(param: Any) -> jax.Array:
    """The values of a parameter, in the dtype of its scales if it is in int8."""
    if not is_quantised(param):
        return param
    import qwix

    return qwix.dequantize(param)


def as_array(param: Any, x: jax.Array) -> jax.Array:
    """A parameter in the dtype of the activations `x` that it meets, dequantised if it is in int8.

    That waits for `x`: what depends on weights alone is the same in all steps of a loop, so that
    autodiff and compilers would lift it out, and hold all layers dequantised at once.
    """
    if is_quantised(param):
        param, _ = jax.lax.optimization_barrier((param, jax.lax.stop_gradient(x)))
    return dequantised(param.astype(x.dtype))
