"""Matrices of frozen agents in int8, by qwix: a quarter of float32's memory, half of bfloat16's.

Only storage is int8. A matrix is a `qwix.QArray`: int8 values, and one scale for each output
channel of a projection or each row of the embeddings, in the decoder's compute dtype; its value is
their product. A layer dequantises each matrix with `as_array` at its multiplication, one at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmas_jax.models.weights import Weight


def require_qwix() -> None:
    """Raises ImportError, with the extra to install, where qwix is missing."""
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'weights="int8" needs qwix, which is not installed; pip install "rmas_jax[int8]"'
        ) from error


def quantised(
    weight: Weight, layers: Iterable[jax.Array], dtype: Any, mesh: Mesh | None = None
) -> Any:
    """A matrix in int8, from its layers in a checkpoint.

    Rounds values to the nearest multiple of their channel's largest magnitude / 127.5. A mesh
    splits values like the matrix, and scales along their own dimensions.

    Args:
      weight: the row of its table, with sizes; some dimensions share a scale.
      layers: float32, in turn; each is freed when the next one is loaded.
      dtype: of the scales, and of the dequantised matrix.
      mesh: the devices that hold `layers`.
    """
    rounded = [
        jax.block_until_ready(_quantise(layer, weight.scale_axes, jnp.dtype(dtype)))
        for layer in layers
    ]
    param = jax.tree.map(lambda *xs: jnp.stack(xs), *rounded) if weight.is_stacked else rounded[0]
    if mesh is None:
        return param
    return jax.tree.map(lambda x: jax.device_put(x, weight.sharding(mesh, x.shape)), param)


def abstract_quantised(weight: Weight, dtype: Any, mesh: Mesh | None = None) -> Any:
    """The result of `quantised` with a `jax.ShapeDtypeStruct` for each array."""
    layer = jax.ShapeDtypeStruct(weight.layer_shape, jnp.float32)
    one = jax.eval_shape(
        functools.partial(_quantise, shared=weight.scale_axes, dtype=jnp.dtype(dtype)), layer
    )

    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (len(weight.names), *x.shape) if weight.is_stacked else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=weight.sharding(mesh, shape))

    return jax.tree.map(stacked, one)


@functools.partial(jax.jit, static_argnames=("shared", "dtype"))
def _quantise(layer: jax.Array, shared: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """A `qwix.QArray` whose scales have size 1 in the axes `shared`."""
    import qwix

    own = tuple(axis for axis in range(layer.ndim) if axis not in shared)
    return qwix.quantize(layer, jnp.int8, channelwise_axes=own, scale_dtype=dtype)


def is_quantised(param: Any) -> bool:
    """Whether a parameter is in int8."""
    return hasattr(param, "qvalue")


def dequantised(param: Any) -> jax.Array:
    """The values of a parameter, in the dtype of its scales if it is in int8."""
    if not is_quantised(param):
        return param
    import qwix

    return qwix.dequantize(param)


def as_array(param: Any, x: jax.Array) -> jax.Array:
    """A parameter in the dtype of the activations `x`, dequantised if it is in int8.

    Dequantisation depends on `x`: otherwise it would be loop-invariant, and autodiff and compilers
    would hoist it out of the loop and dequantise all layers at once.
    """
    if is_quantised(param):
        param, _ = jax.lax.optimization_barrier((param, jax.lax.stop_gradient(x)))
    return dequantised(param.astype(x.dtype))
