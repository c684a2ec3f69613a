"""Divergence: training whose numbers are not finite, or too large."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.host.nonfinite import NonFiniteError


class DivergedError(RuntimeError):
    """A loss, gradient or parameter is not finite, or a loss is too large; the message names it."""


@contextlib.contextmanager
def as_divergence(work: str) -> Iterator[None]:
    """Turns an agent's NonFiniteError into a DivergedError of `work`."""
    try:
        yield
    except NonFiniteError as error:
        raise DivergedError(f"{work}: {error}") from None


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def broken_parts(parts: Mapping[str, Any]) -> list[str]:
    """Names of the parts with NaN or infinity."""
    return [
        name
        for name, finite in jax.device_get(_finite(dict(parts))).items()
        if not np.all(jax.tree.leaves(finite))
    ]
