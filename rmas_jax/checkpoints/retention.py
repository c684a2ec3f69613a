"""Which checkpoints to keep, and checkpoints that one process of several writes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import safetensors.numpy

from rmas_jax.host.atomic import write_atomic


@dataclasses.dataclass(frozen=True)
class Retention:
    """Rule of which checkpoints to keep: the newest `keep`, and the one of lowest validation loss.

    Orbax's own rule for the best one reads a file of every checkpoint when it opens a directory,
    and a damaged checkpoint would make the whole directory unreadable.
    """

    keep: int
    losses: dict[int, float]  # step -> validation loss; updated by the store

    def best(self, steps: Iterable[int]) -> int | None:
        """The step of lowest loss among `steps`; None if no loss is finite."""
        validated = [step for step in steps if math.isfinite(self.losses.get(step, math.nan))]
        return min(validated, key=self.losses.__getitem__, default=None)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether to keep each checkpoint; orbax calls this after every save."""
        steps = sorted(found.step for found in checkpoints)
        kept = {*steps[-self.keep :], self.best(steps)}
        return [found.step in kept for found in checkpoints]


class SavedStep(NamedTuple):
    """A checkpoint of `LoneCheckpointer`."""

    step: int


@dataclasses.dataclass
class LoneCheckpointer:
    """Checkpoints that one process writes, each as one file, which object storage keeps whole.

    Orbax needs all processes, and several files that are renamed together.
    """

    directory: Path
    retention: Retention

    @property
    def checkpoints(self) -> list[SavedStep]:
        """In order."""
        return [SavedStep(step) for step in sorted(int(x.stem) for x in self._files())]

    def _files(self) -> list[Path]:
        return [file for file in self.directory.glob("*.safetensors") if file.stem.isdecimal()]

    def _file(self, step: int) -> Path:
        return self.directory / f"{step}.safetensors"

    def save(self, step: int, state: Any) -> None:
        """Writes a state of host arrays; removes the checkpoints that are not to be kept."""
        write_atomic(self._file(step), safetensors.numpy.save(_by_path(state)))
        saved = self.checkpoints
        for found, is_kept in zip(
            saved, self.retention.should_preserve(saved, context=None), strict=True
        ):
            if not is_kept:
                self.delete(found.step)

    def load(self, step: int, like: Any) -> Any:
        """The state of a step on the host, with the tree of `like`.

        Raises:
          Exception: of many kinds; the file is damaged, or of another state.
        """
        found = safetensors.numpy.load(self._file(step).read_bytes())
        expected = _by_path(like)
        shapes = {name: (x.shape, x.dtype) for name, x in expected.items()}
        if shapes != {name: (x.shape, x.dtype) for name, x in found.items()}:
            raise ValueError(f"it must have the arrays {', '.join(expected)} of the state")
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in expected])

    def delete(self, step: int) -> None:
        """Removes a checkpoint."""
        self._file(step).unlink()

    def wait(self) -> None:
        """Nothing is written in the background."""

    def reload(self) -> None:
        """Nothing is remembered."""


def _by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their place, in order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
