"""Adapter files of a run: safetensors with a checksum, as of links."""

from __future__ import annotations

from pathlib import Path

import jax

from rmas_jax.agents.adapters import Adapter, named_arrays
from rmas_jax.host.errors import clipped
from rmas_jax.interop.link_files import read_arrays, save_arrays
from rmas_jax.models import CheckpointError


def save_adapter(path: str | Path, adapter: Adapter) -> None:
    """Writes an adapter (host arrays) as one safetensors file, atomically."""
    save_arrays(path, named_arrays(adapter))


def load_adapter(path: str | Path, like: Adapter) -> Adapter:
    """Reads a file of `save_adapter`, as host arrays.

    Args:
      path: of the file.
      like: an adapter of the same kind and shapes, for example of `jax.ShapeDtypeStruct`.

    Raises:
      CheckpointError: see `read_arrays`; or the file holds other arrays.
    """
    arrays = read_arrays(path)
    wanted = {name: x.shape for name, x in named_arrays(like).items()}
    found = {name: x.shape for name, x in arrays.items()}
    if found != wanted:
        differing = sorted(
            name for name in {*found, *wanted} if found.get(name) != wanted.get(name)
        )
        raise CheckpointError(
            f"{path}: must hold the arrays of {type(like).__name__}, got others, such as "
            f"{clipped(differing[0], 200)}: {found.get(differing[0], 'missing')}, expected "
            f"{wanted.get(differing[0], 'none')}"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
