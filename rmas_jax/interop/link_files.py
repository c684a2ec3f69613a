"""Files of links, as a run writes them: safetensors with a checksum, of all links of a system."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import clipped
from rmas_jax.host.reading import GIBIBYTE, read_bytes
from rmas_jax.links import INNER, OUTER, Links
from rmas_jax.models import CheckpointError
from rmas_jax.models.stored import as_float32, read_safetensors

LIMIT = 64 * GIBIBYTE
# A safetensors file is the length of its header in 8 bytes, the header as JSON, and the arrays.
HEADER_START, METADATA, DIGEST = 8, "__metadata__", "sha256"


def save_links(path: str | Path, links: Links) -> None:
    """Writes the links of a system (host arrays) as one safetensors file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(x) for name, x in flatten_dict(vars(links), sep="/").items()}
    digest = _content_digest(save(arrays))
    write_atomic(path, save(arrays, metadata={DIGEST: digest}))  # save_file's errors name no file


def load_links(path: str | Path) -> Links:
    """Reads what `save_links` wrote.

    Raises:
      CheckpointError: as for `read_link_arrays`, or it holds anything but inner and outer links.
    """
    arrays = read_link_arrays(path)
    found = unflatten_dict({name: jnp.asarray(x) for name, x in arrays.items()}, sep="/")
    if found.keys() != {INNER, OUTER}:
        raise CheckpointError(
            f"{path}: must hold {INNER} and {OUTER} links, got {clipped(', '.join(found), 200)}"
        )
    return Links(**found)


def read_link_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays in a file of links by name, in float32.

    Raises:
      CheckpointError: there is no such file, it is not what was written, or holds anything but
        finite floating-point numbers.
    """
    tensors = read_safetensors(path)
    raw = read_bytes(path, at_most=LIMIT, error=CheckpointError)
    stored = (_header(raw).get(METADATA) or {}).get(DIGEST)  # null is as good as none
    if stored is not None and stored != _content_digest(raw):
        raise CheckpointError(f"{path}: is damaged: its checksum is not that of what it holds")
    return as_float32(tensors, source=path)


def _content_digest(raw: bytes) -> str:
    """SHA-256 of a safetensors file without its metadata."""
    header = {name: entry for name, entry in _header(raw).items() if name != METADATA}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(raw)[_header_end(raw) :])
    return digest.hexdigest()


def _header(raw: bytes) -> dict[str, Any]:
    return json.loads(raw[HEADER_START : _header_end(raw)])


def _header_end(raw: bytes) -> int:
    return HEADER_START + int.from_bytes(raw[:HEADER_START], "little")
