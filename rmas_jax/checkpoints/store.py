"""Train states on disk, by orbax: saved in the background, the newest intact one restored."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from rmas_jax.checkpoints.digests import state_digest
from rmas_jax.checkpoints.retention import LoneCheckpointer, Retention
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.checksums import seal, unseal
from rmas_jax.host.errors import clipped, shown
from rmas_jax.host.processes import broadcast_from_first, is_first, lost_process, on_all
from rmas_jax.host.reading import MEBIBYTE, parse_json, read_bytes, read_json
from rmas_jax.host.storage import Mirror, flush
from rmas_jax.models import CheckpointError
from rmas_jax.sharding import to_host

RECORD = "record.json"  # beside the checkpoints
RECORD_LIMIT = 64 * MEBIBYTE
STATE, ARRAY = "state", "/zarr.json"  # orbax's folder of a state; an array's description in it
log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_checkpoints(
    directory: str | Path,
    *,
    keep: int,
    made_with: Mapping[str, Any] | None = None,
    mirror: Mirror | None = None,
) -> Iterator[CheckpointStore]:
    """Opens or makes a directory of checkpoints; at the end, waits until all are written.

    All processes share the directory and write their parts. Of object storage, only the first
    process has a copy: it gathers a state, writes and uploads it, and sends it to all.

    Args:
      directory: one per phase.
      keep: newest checkpoints to keep.
      made_with: JSON values outside the state that a resumed run must share (the key, the agents'
        sources); written beside the checkpoints.
      mirror: the directory on object storage.

    Raises:
      CheckpointError: the directory has checkpoints of another `made_with`, or their record is
        damaged or missing.
    """
    directory = Path(directory).absolute()
    made_with = dict(made_with or {})
    losses: dict[int, float] = {}
    digests: dict[int, list[list[int]]] = {}
    # Before orbax, whose errors do not name the file.
    if mirror is not None:
        broadcast_from_first(mirror.pull)
    if is_new := broadcast_from_first(lambda: not (directory / RECORD).exists()):
        broadcast_from_first(lambda: _check_new(directory))
    else:
        read = on_all if mirror is None else broadcast_from_first
        losses, digests = read(lambda: _read_record(directory, made_with))
    broadcast_from_first(lambda: _check_files(directory))
    retention = Retention(keep, losses)
    with contextlib.ExitStack() as stack:
        checkpointer = None
        if mirror is None:
            checkpointer = stack.enter_context(
                ocp.training.Checkpointer(
                    directory, preservation_policy=retention, cleanup_tmp_directories=True
                )
            )
        elif is_first():
            directory.mkdir(parents=True, exist_ok=True)
            checkpointer = LoneCheckpointer(directory, retention)
        store = CheckpointStore(directory, retention, checkpointer, made_with, digests, mirror)
        if is_new:
            store.write_record()
        yield store


def _check_files(directory: Path) -> None:
    """Refuses pipes, sockets and devices, which would block orbax."""
    for file in directory.rglob("*"):
        if not file.is_dir() and not file.is_file():
            raise CheckpointError(
                f"{file}: must be a regular file; put back a copy, or remove its "
                f"checkpoint, the folder in {directory}: training then resumes from the one before"
            )


def _check_new(directory: Path) -> None:
    """Refuses checkpoints without their record, which names the run they belong to."""
    if directory.is_dir() and any(file.stem.isdecimal() for file in directory.iterdir()):
        raise CheckpointError(f"{directory / RECORD}: no such file; {_way_out(directory)}")


def _way_out(directory: Path) -> str:
    return f"put back a copy, or remove {directory} and run again: this phase then starts anew"


def _read_record(
    directory: Path, made_with: Mapping[str, Any]
) -> tuple[dict[int, float], dict[int, list[list[int]]]]:
    """Validation losses and digests by step; checks that `made_with` is the same."""
    path = directory / RECORD
    try:
        record = read_json(path, at_most=RECORD_LIMIT, error=CheckpointError)
        record = unseal(record, source=str(path), error=CheckpointError)
        losses, digests = record["validation_loss"], record.get("digests", {})
        losses = {int(step): float(loss) for step, loss in losses.items()}
        digests = {int(step): digest for step, digest in digests.items()}
        recorded = dict(record["made_with"].items())
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_way_out(directory)}") from None
    except (KeyError, AttributeError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: must have made_with, and validation_loss by step; {_way_out(directory)}"
        ) from None
    for name, value in made_with.items():
        if recorded.get(name) != value:
            raise CheckpointError(
                f"{directory}: {name} must be that of its checkpoints, "
                f"{shown(recorded.get(name))}, got {shown(value)}; use another directory or remove "
                "it"
            )
    return losses, digests


@dataclasses.dataclass
class CheckpointStore:
    """The checkpoints of one phase; see `open_checkpoints`. All processes use it together."""

    directory: Path
    retention: Retention
    checkpointer: Any  # orbax's; None in other processes than the first, with a mirror
    made_with: Mapping[str, Any]
    digests: dict[int, list[list[int]]]  # step -> digest of its state
    mirror: Mirror | None = None

    @property
    def losses(self) -> dict[int, float]:
        """Validation losses by step."""
        return self.retention.losses

    def write_record(self) -> None:
        """Writes the record beside the checkpoints, in the first process."""
        if is_first():
            record = {
                "made_with": self.made_with,
                "validation_loss": self.losses,
                "digests": self.digests,
            }
            write_atomic(self.directory / RECORD, json.dumps(seal(record), indent=2))

    def save(self, step: int, state: Any, *, validation_loss: float | None = None) -> None:
        """Starts to write a state; waits only for an earlier save, or for the upload to a mirror.

        Atomic: a checkpoint is complete or missing. The state may be donated immediately.
        """
        if validation_loss is not None:
            self.losses[step] = validation_loss
        # Digests of existing checkpoints, and of newer ones that may still be in the making.
        existing = set(self._saved())
        newest = max(existing, default=-1)
        self.digests = {s: d for s, d in self.digests.items() if s in existing or s > newest}
        self.digests[step] = state_digest(state)
        self.write_record()  # before the checkpoint, which needs its digest
        if self.mirror is None:
            self.checkpointer.save_async(step, state, overwrite=True, force=True)
        else:
            whole = to_host(state)
            broadcast_from_first(lambda: self._upload(step, whole))

    def _upload(self, step: int, whole: Any) -> None:
        flush()  # the curves up to this step
        self.checkpointer.save(step, whole)
        assert self.mirror is not None
        self.mirror.push()

    def steps(self) -> tuple[int, ...]:
        """Steps of existing checkpoints, in order; waits until all are written."""
        if self.checkpointer is not None:
            self.checkpointer.wait()
        return self._saved()

    def _saved(self) -> tuple[int, ...]:
        def saved() -> tuple[int, ...]:
            return tuple(found.step for found in self.checkpointer.checkpoints)

        return saved() if self.mirror is None else broadcast_from_first(saved)

    def best_step(self) -> int | None:
        """The existing step of lowest validation loss; None if none has a finite loss."""
        return self.retention.best(self.steps())

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """The newest readable state, with its step; None if no state was saved.

        Removes newer, damaged checkpoints: training resumes before them.

        Args:
          like: a state of the same shapes, dtypes and shardings.

        Raises:
          CheckpointError: there are checkpoints, but all are damaged.
        """
        saved = self.steps()
        for step in reversed(saved):
            try:
                state = self.restore(step, like)
            except CheckpointError as error:
                log.warning("%s; trying the one before it", error)
            else:
                self._remove_after(step)
                return step, state
        if saved:
            raise CheckpointError(
                f"{self.directory}: all checkpoints are damaged ({', '.join(map(str, saved))}); "
                f"{_way_out(self.directory)}"
            )
        return None

    def _check(self, step: int) -> None:
        """Reads all arrays of a checkpoint in this process alone; damage raises any exception.

        Orbax loads in all processes together: an error in one of them would leave the others
        waiting.
        """
        state = self.directory / str(step) / STATE
        # If one of these is damaged, orbax fails in threads and prints their tracebacks.
        for file in (state / "_METADATA", *state.glob("array_metadatas/*")):
            raw = read_bytes(file, at_most=RECORD_LIMIT, error=CheckpointError)
            parse_json(raw, source=file.relative_to(self.directory), error=CheckpointError)
        store = {"driver": "ocdbt", "base": f"file://{state}/"}
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
            for other in [known for known in self.losses if known > step]:
                del self.losses[other]
            broadcast_from_first(lambda: self._delete(newer))
            self.write_record()
            if self.checkpointer is not None:
                self.checkpointer.reload()  # orbax' own deletion may read damaged files

    def _delete(self, steps: Sequence[int]) -> None:
        for step in steps:
            if self.mirror is None:
                shutil.rmtree(self.directory / str(step))
            else:
                self.checkpointer.delete(step)

    def restore_best(self, like: Any) -> Any:
        """The state of lowest validation loss; see `restore`."""
        step = self.best_step()
        if step is None:
            raise CheckpointError(
                f"{self.directory}: must have a checkpoint with a validation loss, got none; "
                f"{_way_out(self.directory)}"
            )
        try:
            return self.restore(step, like)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; it is the best one; {_way_out(self.directory)}"
            ) from None

    def restore(self, step: int, like: Any) -> Any:
        """The saved state of a step.

        Args:
          step: one of `steps`.
          like: a state of the same shapes, dtypes and shardings.

        Raises:
          CheckpointError: the checkpoint cannot be read, or its numbers differ from the saved ones.
        """
        try:
            state = self._load(step, like)
        except Exception as error:  # readers raise any exception for a damaged file
            if lost_process(error):
                raise
            reason = clipped((str(error).splitlines() or [type(error).__name__])[0], 300)
            raise CheckpointError(
                f"{self.directory}: checkpoint {step} cannot be read ({reason})"
            ) from None
        if self.digests.get(step, digest := state_digest(state)) != digest:
            raise CheckpointError(
                f"{self.directory}: checkpoint {step} is damaged (its checksum differs from that "
                "of the saved state)"
            )
        return state

    def _load(self, step: int, like: Any) -> Any:
        if self.mirror is None:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
            )
            broadcast_from_first(lambda: self._check(step))
            return on_all(lambda: self.checkpointer.load(step, abstract))
        found = [jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)]

        def load() -> None:
            found[0] = self.checkpointer.load(step, like)

        broadcast_from_first(load)
        whole = multihost_utils.broadcast_one_to_all(found[0])
        return jax.tree.map(
            lambda x, value: jax.make_array_from_callback(x.shape, x.sharding, value.__getitem__),
            like,
            jax.tree.map(np.asarray, whole),
        )
