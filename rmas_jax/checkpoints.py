"""Train states on disk, by orbax: saved every few steps, the newest readable one restored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp
from safetensors.flax import load_file, save_file

log = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one phase: the newest `keep` stay."""

    def __init__(self, directory: str | Path, *, keep: int):
        policy = ocp.training.preservation_policies.LatestN(keep)
        self.directory = Path(directory).absolute()
        self.checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=policy, cleanup_tmp_directories=True
        )

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: Any) -> None:
        self.checkpointer.close()

    def save(self, step: int, state: Any) -> None:
        """Writes a state; it is there as a whole or not at all."""
        self.checkpointer.save(step, state, overwrite=True)

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """The newest state that can be read, with its step; None where there is none.

        Args:
          like: a state of the same shapes, dtypes and shardings.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        for found in reversed(self.checkpointer.checkpoints):
            try:
                return found.step, self.checkpointer.load(found.step, abstract)
            except Exception as error:  # whatever a damaged file makes a reader raise
                log.warning(
                    "%s: checkpoint %d cannot be read (%s); using the one before it",
                    self.directory,
                    found.step,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
        return None


def save_links(path: str | Path, links: Any) -> None:
    """Writes the links of a system as one safetensors file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".partial")
    save_file(flatten_dict(links, sep="/"), half)
    half.rename(path)


def load_links(path: str | Path) -> Any:
    """Reads what `save_links` wrote: {"inner": {role: params}, "outer": {edge: params}}."""
    return unflatten_dict(load_file(path), sep="/")
