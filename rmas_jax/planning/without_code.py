"""Compiles programs for TPUs up to their machine code, of which a plan needs nothing.

Machine code takes most of a compilation. Before it is made, the compiler dumps the optimised HLO
and the assignment of buffers:

    this process                    a process for each program
    program, options      ->        compiles, with dumps
    reads HLO and sizes   <-        HLO, buffers
    ends it                         (would make machine code)
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rmas_jax.planning.chips import Slice
from rmas_jax.planning.compiling import Compiled, devices_of, refused
from rmas_jax.planning.dumps import Dump, read_dump
from rmas_jax.planning.hlo_text import Shape

PROGRAM, REQUEST, ERROR, DUMPS = "program.mlir", "request.json", "error.txt", "dumps"
STDERR = "stderr.txt"
POLL_S = 0.1
LAST_WORDS = 2000  # characters of its standard error, for a message


@dataclasses.dataclass(eq=False)
class WithoutCode:
    """A compiler of programs for a slice of TPUs; for any number of threads."""

    slice: Slice

    def __call__(
        self, lowered: Any, sharding: Sharding | None, is_stopped: threading.Event
    ) -> Compiled:
        """As `compiling.compile_whole`, without an executable; code is an allowance.

        Raises:
          jax.errors.JaxRuntimeError: the compiler refuses the program for another reason than
            memory, or its process ends without dumps.
          CancelledError: `is_stopped` is set.
        """
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="rmas-plan-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            _write_request(folder, self.slice, lowered, sharding)
            found = _dump(folder, is_stopped)
        seconds = time.perf_counter() - started
        if isinstance(found, str):
            return refused(jax.errors.JaxRuntimeError(found), seconds)
        leaves, tree = jax.tree.flatten(lowered.out_info)
        outputs = [
            jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding or split_of(x.shape, part, sharding)
            )
            for x, part in zip(leaves, found.results, strict=True)
        ]
        return Compiled(found.text, found.sizes, jax.tree.unflatten(tree, outputs), seconds)


def _dump(folder: Path, is_stopped: threading.Event) -> Dump | str:
    """The dump of the folder's program, or the compiler's error."""
    command = [sys.executable, "-m", "rmas_jax.planning.without_code_worker", str(folder)]
    with (folder / STDERR).open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end ends the process
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,  # a key that interrupts this process ends it alone
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        while not is_stopped.wait(POLL_S):
            has_ended = process.poll() is not None  # read first: its files are then all there
            if (found := read_dump(folder / DUMPS)) is not None:
                return found
            if has_ended and (folder / ERROR).exists():
                return (folder / ERROR).read_text()
            if has_ended:
                last = (folder / STDERR).read_text(errors="replace")[-LAST_WORDS:]
                return f"a compiler must dump its program, got exit code {process.poll()}: {last}"
    finally:
        process.kill()
        process.communicate()
    raise CancelledError


def _write_request(folder: Path, wanted: Slice, lowered: Any, sharding: Sharding | None) -> None:
    """Writes what `without_code_worker` reads."""
    program = io.BytesIO()
    lowered.compiler_ir().operation.write_bytecode(program)
    (folder / PROGRAM).write_bytes(program.getvalue())
    request = {
        "slice": str(wanted),
        "devices": [device.id for device in devices_of(sharding)],
        "open_outputs": [x.sharding is None for x in jax.tree.leaves(lowered.out_info)],
    }
    (folder / REQUEST).write_text(json.dumps(request))


def split_of(shape: Sequence[int], part: Shape, like: Sharding | None) -> Sharding | None:
    """The sharding by which a device has a part of an array.

    Args:
      shape: of the array.
      part: on a device; a key has further dimensions.
      like: of the program; no mesh: its own.

    Each dimension is split over the first axes, together or one of them, that make as many parts:
    axes of equal sizes are not told apart.
    """
    if not isinstance(like, NamedSharding):
        return like
    left, spec = [axis for axis, n in like.mesh.shape.items() if n > 1], []
    for size, own in zip(shape, part.sizes, strict=False):
        axes = _axes_of(size, own, left, like.mesh.shape)
        left = [axis for axis in left if axis not in axes]
        spec.append(axes or None)
    return NamedSharding(like.mesh, PartitionSpec(*spec))


def _axes_of(size: int, own: int, axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes that split a dimension of this size into parts of a size of their own."""
    if size == own:
        return ()
    for count in range(len(axes), 0, -1):
        for found in itertools.combinations(axes, count):
            if -(-size // math.prod(sizes[axis] for axis in found)) == own:
                return found
    raise ValueError(f"a part must be made by axes of {dict(sizes)}, got {own} of {size}")
