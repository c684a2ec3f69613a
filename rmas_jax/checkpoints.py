"""Train states on disk, by orbax: saved in the background, the newest readable one restored."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save

from rmas_jax.models import CheckpointError
from rmas_jax.models.stored import as_float32, read_safetensors
from rmas_jax.processes import from_first, is_first, together
from rmas_jax.whole_files import write_whole

RECORD = "record.json"  # beside the checkpoints
STATE, ARRAY = "state", "/zarr.json"  # orbax's folder of a state; what describes an array there
log = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one phase: the newest `keep` stay, and the one of lowest validation loss.

    All processes of a run use it together.
    """

    def __init__(
        self, directory: str | Path, *, keep: int, made_with: Mapping[str, Any] | None = None
    ):
        """Opens a directory, or makes it.

        Args:
          directory: one per phase.
          keep: newest checkpoints to keep.
          made_with: what the state does not hold and a resumed run must share (the key, where the
            agents come from), as JSON can hold it; written beside the checkpoints.

        Raises:
          ValueError: the directory holds checkpoints that were made with something else.
        """
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.made_with = dict(made_with or {})
        self.losses: dict[int, float] = {}  # step -> validation loss
        self.checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=self, cleanup_tmp_directories=True
        )
        if (self.directory / RECORD).is_file():
            self._read_record()
        else:
            self._write_record()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Which of these stay; orbax asks after every save.

        Orbax's own rule for the best reads a file of every checkpoint when a directory is opened,
        and one that is damaged would keep it shut.
        """
        steps = sorted(found.step for found in checkpoints)
        kept = {*steps[-self.keep :], self._best_of(steps)}
        return [found.step in kept for found in checkpoints]

    def _best_of(self, steps: Iterable[int]) -> int | None:
        validated = [step for step in steps if math.isfinite(self.losses.get(step, math.nan))]
        return min(validated, key=self.losses.__getitem__, default=None)

    def _read_record(self) -> None:
        record = json.loads((self.directory / RECORD).read_text())
        for name, value in self.made_with.items():
            if record["made_with"].get(name) != value:
                raise ValueError(
                    f"{self.directory}: its checkpoints were made with {name}="
                    f"{record['made_with'].get(name)}, this run has {value}; use another directory "
                    "or remove it"
                )
        self.losses = {int(step): loss for step, loss in record["validation_loss"].items()}

    def _write_record(self) -> None:
        if is_first():
            record = {"made_with": self.made_with, "validation_loss": self.losses}
            write_whole(self.directory / RECORD, json.dumps(record, indent=2))

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: Any) -> None:
        self.checkpointer.close()  # waits for what is being written

    def save(self, step: int, state: Any, *, validation_loss: float | None = None) -> None:
        """Starts to write a state, and waits for nothing but an earlier save.

        A checkpoint is there as a whole or not at all; the state may be donated at once.
        """
        if validation_loss is not None:
            self.losses[step] = validation_loss
            self._write_record()
        self.checkpointer.save_async(step, state, overwrite=True, force=True)

    def steps(self) -> tuple[int, ...]:
        """Steps whose checkpoints are there, in order; waits for what is being written."""
        self.checkpointer.wait()
        return tuple(found.step for found in self.checkpointer.checkpoints)

    def best_step(self) -> int | None:
        """The step of lowest validation loss that is there; None where none was validated."""
        return self._best_of(self.steps())

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """The newest state that can be read, with its step; None where no state was saved.

        What is newer is removed: training goes on before it, and it would count as the newest.

        Args:
          like: a state of the same shapes, dtypes and shardings.

        Raises:
          CheckpointError: there are checkpoints, and none can be read.
        """
        saved = self.steps()
        for step in reversed(saved):
            try:
                if jax.process_count() > 1:
                    from_first(lambda step=step: self._check(step))
                state = together(lambda step=step: self.restore(step, like))
            except Exception as error:  # whatever a damaged file makes a reader raise
                log.warning(
                    "%s: checkpoint %d cannot be read (%s); trying the one before it",
                    self.directory,
                    step,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
            else:
                self._remove_after(step)
                return step, state
        if saved:
            raise CheckpointError(
                f"{self.directory}: none of the checkpoints {', '.join(map(str, saved))} can be "
                "read; put back a copy, or remove the folder to train from the start"
            )
        return None

    def _check(self, step: int) -> None:
        """Reads all arrays of a checkpoint in this process alone; raises what damage raises.

        Loading is a work of all processes: one that finds its part damaged leaves the others
        waiting for it, and from then on they wait at different places.
        """
        store = {"driver": "ocdbt", "base": f"file://{self.directory / str(step) / STATE}/"}
        names = [name.decode() for name in tensorstore.KvStore.open(store).result().list().result()]
        arrays = [name.removesuffix(ARRAY) for name in names if name.endswith(ARRAY)]
        if not arrays:
            raise FileNotFoundError("there are no arrays")
        for name in arrays:
            spec = {"driver": "zarr3", "kvstore": {**store, "path": name}}
            tensorstore.open(spec).result().read().result()

    def _remove_after(self, step: int) -> None:
        newer = [other for other in self.steps() if other > step]
        if newer:
            self.losses = {s: loss for s, loss in self.losses.items() if s <= step}
            from_first(lambda: [shutil.rmtree(self.directory / str(other)) for other in newer])
            self._write_record()
            self.checkpointer.reload()  # its own way to remove them may read what is damaged

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step; see `restore_newest`."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return self.checkpointer.load(step, abstract)


def save_links(path: str | Path, links: Any) -> None:
    """Writes the links of a system (host arrays) as one safetensors file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(x) for name, x in flatten_dict(links, sep="/").items()}
    write_whole(path, save(arrays))  # save_file's errors name no file


def load_links(path: str | Path) -> Any:
    """Reads what `save_links` wrote: {"inner": {role: params}, "outer": {edge: params}}, float32.

    Raises:
      CheckpointError: there is no such file, it is damaged, or holds anything but finite
        floating-point numbers.
    """
    tensors = as_float32(read_safetensors(path), source=path)
    return unflatten_dict({name: jnp.asarray(x) for name, x in tensors.items()}, sep="/")
