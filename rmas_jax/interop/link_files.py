"""Link files of a run: safetensors with a checksum, of all links of a system."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import clipped
from rmas_jax.host.inputs import local_input
from rmas_jax.links import INNER, OUTER, Links
from rmas_jax.models import CheckpointError
from rmas_jax.models.stored import as_float32, open_safetensors, read_tensors

DIGEST = "sha256"  # key of the file's metadata


def save_links(path: str | Path, links: Links) -> None:
    """Writes the links of a system (host arrays) as one safetensors file, atomically."""
    save_arrays(path, flatten_dict(vars(links), sep="/"))


def save_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name as one safetensors file with a checksum, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    metadata = {DIGEST: _content_digest(arrays)}
    write_atomic(path, save(arrays, metadata=metadata))  # save_file's errors name no file


def load_links(path: str | Path) -> Links:
    """Reads a file of `save_links`.

    Raises:
      CheckpointError: see `read_arrays`; or the file does not hold inner and outer links.
    """
    arrays = read_arrays(path)
    found = unflatten_dict({name: jnp.asarray(x) for name, x in arrays.items()}, sep="/")
    if found.keys() != {INNER, OUTER}:
        raise CheckpointError(
            f"{path}: must hold {INNER} and {OUTER} links, got {clipped(', '.join(found), 200)}"
        )
    return Links(**found)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays in a file of links or of an adapter by name, in float32.

    Raises:
      CheckpointError: the file is missing or damaged, or not all its values are finite
        floating-point numbers.
      StorageError: it is at a URL, and cannot be read there.
    """
    with contextlib.ExitStack() as stack:
        file = open_safetensors(local_input(path), stack)
        tensors, stored = read_tensors(file, source=path), (file.metadata() or {}).get(DIGEST)
    if stored is not None and stored != _content_digest(tensors):
        raise CheckpointError(f"{path}: is damaged: its checksum is not that of its content")
    return as_float32(tensors, source=path)


def _content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
