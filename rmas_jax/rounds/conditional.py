"""A conditional computation, skipped in the backward pass as well as in the forward pass.

Differentiating a `lax.cond` makes its forward branch return every input of the backward branch,
weights included: inside a scan, one copy per step. Here the backward pass is a `lax.cond` of its
own, which recomputes the forward pass and reads the weights in place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Jaxpr


def cond_or_zeros(condition: jax.Array, make: Callable[[], Any]) -> Any:
    """The result of `make` if the condition holds, else zeros of the same shapes and dtypes.

    Reverse-mode derivatives only; they reach all values that `make` closes over.

    Args:
      condition: [] bool.
      make: may close over tracers.
    """
    closed, out = jax.make_jaxpr(make, return_shape=True)()
    return jax.tree.unflatten(
        jax.tree.structure(out), _zeros_unless(closed.jaxpr, condition, closed.consts)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _zeros_unless(jaxpr: Jaxpr, condition: jax.Array, inputs: Sequence[Any]) -> list[jax.Array]:
    shapes: list[Any] = [out.aval for out in jaxpr.outvars]

    def skip(_: Any) -> list[jax.Array]:
        return [jnp.zeros(out.shape, out.dtype) for out in shapes]

    return jax.lax.cond(condition, functools.partial(jax.core.eval_jaxpr, jaxpr), skip, inputs)


def _forward(jaxpr: Jaxpr, condition: Any, inputs: Sequence[Any]) -> tuple[list[jax.Array], Any]:
    """Separates inputs that need a derivative from the others."""
    moving = [x.value if x.perturbed else None for x in inputs]
    fixed = [None if x.perturbed else x.value for x in inputs]
    out = _zeros_unless(jaxpr, condition.value, [x.value for x in inputs])
    return out, (condition.value, moving, fixed)


def _backward(jaxpr: Jaxpr, kept: Any, cotangents: Sequence[Any]) -> tuple[None, list[Any]]:
    condition, moving, fixed = kept

    def pull_back(moving: Any, fixed: Any, cotangents: Any) -> Any:
        def recompute(moving: Any) -> Any:
            inputs = [y if x is None else x for x, y in zip(moving, fixed, strict=True)]
            return jax.core.eval_jaxpr(jaxpr, inputs)

        return jax.vjp(recompute, moving)[1](cotangents)[0]

    def skip(moving: Any, *_: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, moving)

    cotangents = [
        jnp.zeros(ct.shape, ct.dtype) if isinstance(ct, SymbolicZero) else ct for ct in cotangents
    ]
    return None, jax.lax.cond(condition, pull_back, skip, moving, fixed, cotangents)


_zeros_unless.defvjp(_forward, _backward, symbolic_zeros=True)
