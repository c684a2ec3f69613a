"""Compiles a program, or takes from a folder what an earlier compilation said of it.

Kept are the compiled text, its memory and the shardings of its outputs: all that a plan needs, so
an interrupted plan, a search or a study goes on where it stopped. A file is found by the program's
whole text, its devices, and the versions and flags of the compiler.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rmas_jax.host.atomic import write_atomic
from rmas_jax.sharding import with_shardings

# What the compiler says where a program's memory exceeds a device's.
OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.*?HLO temporaries \(([\d.]+)([KMGT])\)", re.DOTALL)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZES = ("argument", "output", "alias", "temp", "generated_code")  # of `memory_analysis`
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """What a compiler says of a program."""

    text: str | None  # HLO; None: it refused the program, for lack of memory
    sizes: Mapping[str, int]  # bytes on each device, by `SIZES`; refused: "temp" alone
    outputs: Any  # tree of jax.ShapeDtypeStruct with shardings; refused: None
    seconds: float  # of the compilation
    executable: Any = None  # None: refused, from the folder, or without machine code


# Of a lowered program, with the sharding of an argument; ends early once the event is set.
Compiler = Callable[[Any, Sharding | None, threading.Event], Compiled]


@dataclasses.dataclass(eq=False)
class Compilations:
    """Compilations of this process, and those of a folder, by the digests of their programs."""

    folder: str | Path | None = None  # gets each compilation; None: nothing is kept
    compiler: Compiler = dataclasses.field(default_factory=lambda: compile_whole)
    known: dict[str, Compiled] = dataclasses.field(default_factory=dict)
    is_stopped: threading.Event = dataclasses.field(default_factory=threading.Event)

    def compile(self, lowered: Any, sharding: Sharding | None) -> Compiled:
        """Compiles a program, unless an earlier compilation is at hand.

        Args:
          lowered: of shapes with shardings.
          sharding: of one of these, over all its devices.

        Raises:
          jax.errors.JaxRuntimeError: the compiler refuses the program for another reason than
            memory.
          CancelledError: `is_stopped` is set.
        """
        if self.is_stopped.is_set():
            raise CancelledError
        digest = _digest(lowered, sharding)
        if digest not in self.known:
            self.known[digest] = self._compile(digest, lowered, sharding)
        return self.known[digest]

    def _compile(self, digest: str, lowered: Any, sharding: Sharding | None) -> Compiled:
        if self.folder is None:
            return self.compiler(lowered, sharding, self.is_stopped)
        path = Path(self.folder) / f"{digest}.json.gz"
        if (found := _read(path, lowered, sharding)) is None:
            found = self.compiler(lowered, sharding, self.is_stopped)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, found)
        return found


def compile_whole(lowered: Any, *_: Any) -> Compiled:
    """Compiles a program of shapes with shardings, machine code and all.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses the program for another reason than memory.
    """
    started = time.perf_counter()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return refused(error, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    stats: Any = executable.memory_analysis()
    sizes = {name: getattr(stats, f"{name}_size_in_bytes") for name in SIZES}
    outputs = with_shardings(executable.out_info, executable.output_shardings)
    return Compiled(executable.as_text() or "", sizes, outputs, seconds, executable)


def refused(error: jax.errors.JaxRuntimeError, seconds: float) -> Compiled:
    """What a compiler says of a program that it refuses for lack of memory; else the error."""
    if (found := OUT_OF_MEMORY.search(str(error))) is None:
        raise error
    temporaries = int(float(found[1]) * UNITS[found[2]])
    return Compiled(None, {"temp": temporaries}, None, seconds)


def devices_of(sharding: Sharding | None) -> list[Any]:
    """The devices of a program with such an argument, in its order; empty if unknown."""
    if isinstance(sharding, NamedSharding):
        return list(sharding.mesh.devices.flat)
    return [] if sharding is None else sorted(sharding.device_set, key=lambda x: x.id)


def _digest(lowered: Any, sharding: Sharding | None) -> str:
    devices: list[Any] = [] if sharding is None else sorted(sharding.device_set, key=lambda x: x.id)
    compiler = devices[0].client.platform_version if devices else ""
    made_of = (
        lowered.as_text(),
        repr(sharding),
        repr(devices),
        compiler,
        jax.lib.__version__,
        [os.environ.get(name) for name in FLAGS],
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()


def _write(path: Path, compiled: Compiled) -> None:
    specs = jax.tree.map(lambda x: _spec(x.sharding), jax.tree.leaves(compiled.outputs))
    content = {
        "text": compiled.text,
        "sizes": dict(compiled.sizes),
        "outputs": specs,
        "seconds": compiled.seconds,
    }
    write_atomic(path, gzip.compress(json.dumps(content).encode(), mtime=0))


def _read(path: Path, lowered: Any, sharding: Sharding | None) -> Compiled | None:
    """What the folder has of a program; None if nothing, or a damaged file."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    outputs = None
    if content["text"] is not None:
        leaves, tree = jax.tree.flatten(lowered.out_info)
        shapes = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(spec, sharding))
            for x, spec in zip(leaves, content["outputs"], strict=True)
        ]
        outputs = jax.tree.unflatten(tree, shapes)
    return Compiled(content["text"], content["sizes"], outputs, content["seconds"])


def _spec(sharding: Any) -> Any:
    """The axes of each dimension of a NamedSharding, as JSON; None for another sharding."""
    if not isinstance(sharding, NamedSharding):
        return None
    return [axes if axes is None or isinstance(axes, str) else list(axes) for axes in sharding.spec]


def _sharding(spec: Any, like: Any) -> Sharding | None:
    if spec is None or not isinstance(like, NamedSharding):
        return like
    axes = (tuple(entry) if isinstance(entry, list) else entry for entry in spec)
    return NamedSharding(like.mesh, PartitionSpec(*axes))
