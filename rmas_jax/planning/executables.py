"""Programs that were compiled ahead of time, in a file: saved after a plan, loaded for a run.

    executables of rmas, 2 | SHA-256 of the rest
    JSON: what the programs were made for, and the size of each by the digest of its text
    the programs, one after the other

A file serves the settings that it was made for alone. A program in it is found by its whole text
before compilation; one that is missing there, such as that of a shorter batch, compiles as usual.
A program is machine code: load only files of your own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.sharding import NamedSharding

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.compilations import note_loaded
from rmas_jax.host.errors import InputError, listed, shown
from rmas_jax.host.inputs import local_input

FORMAT = b"executables of rmas, 2 | "
WAY_OUT = "make it again with rmas plan --executable"
log = logging.getLogger(__name__)


class ExecutableError(InputError):
    """A file of executables that cannot be written or used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Executables:
    """A file of programs."""

    path: str | Path
    programs: Mapping[str, bytes]  # by the digest of their text
    taken: dict[str, Any] = dataclasses.field(default_factory=dict)  # loaded ones, by digest
    # Program by function and all on which it depends; with those that are not in the file.
    ready: dict[Any, Any] = dataclasses.field(default_factory=dict)


_in_use: list[Executables] = []  # the last one serves this process


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Compiles anew inside, as programs out of JAX's cache on disk cannot be saved (on CPUs)."""
    was_enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was_enabled)
        compilation_cache.reset_cache()


def save_executables(
    path: str | Path, programs: Iterable[tuple[Any, Any]], *, made_for: Mapping[str, Any]
) -> None:
    """Writes programs, each as lowered and as compiled (inside `without_cache`).

    Args:
      path: of the file.
      programs: at least one.
      made_for: settings, as values of JSON; `read_executables` must name the same.

    Raises:
      ExecutableError: the compiler cannot serialise one.
    """
    found = {}
    for lowered, compiled in programs:
        try:
            found[_digest(lowered, _devices_of(jax.tree.leaves(compiled.input_shardings)))] = (
                serialize(compiled)[0]
            )
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            raise ExecutableError(f"{path}: a program cannot be serialised: {error}") from None
    sizes = {digest: len(program) for digest, program in found.items()}
    head = json.dumps({"made_for": _with_versions(made_for), "sizes": sizes}).encode()
    content = b"\n".join([head, b"".join(found.values())])
    digest = hashlib.sha256(content).hexdigest().encode()
    write_atomic(Path(path), b"\n".join([FORMAT + digest, content]))


def read_executables(path: str | Path, *, made_for: Mapping[str, Any]) -> Executables:
    """Reads a file of `save_executables`, maybe at a URL.

    Raises:
      StorageError: it is at a URL, and cannot be read there.
      ExecutableError: the file cannot be read, is of another format or damaged, or was made for
        other settings or with another version of JAX.
    """
    try:
        raw = local_input(path).read_bytes()
    except OSError as error:
        raise ExecutableError(f"{path}: cannot be read: {error.strerror}") from None
    first, _, content = raw.partition(b"\n")
    if not first.startswith(FORMAT):
        raise ExecutableError(f"{path}: must be a file of rmas plan --executable")
    if first != FORMAT + hashlib.sha256(content).hexdigest().encode():
        raise ExecutableError(
            f"{path}: is damaged: its checksum is not that of its content; {WAY_OUT}"
        )
    head, _, rest = content.partition(b"\n")
    parsed = json.loads(head)
    if differences := list(_differences(parsed["made_for"], _with_versions(made_for))):
        raise ExecutableError(
            f"{path}: must be made for this run: {', '.join(listed(differences, 3))}; {WAY_OUT}"
        )
    programs, start = {}, 0
    for digest, size in parsed["sizes"].items():
        programs[digest] = rest[start : start + size]
        start += size
    return Executables(path, programs)


@contextlib.contextmanager
def in_use(file: Executables) -> Iterator[None]:
    """Functions of `ahead_of_time` take their programs from a file inside."""
    _in_use.append(file)
    try:
        yield
    finally:
        _in_use.remove(file)
        taken, held = len(file.taken), len(file.programs)
        log.info("%s: %d of its %d programs were taken", file.path, taken, held)


class AheadOfTime:
    """A jitted function that takes its programs from the file in use, where they are in it.

    Without a file, and in all other respects, it is the jitted function.
    """

    def __init__(self, jitted: Any, static: Collection[str]):
        functools.update_wrapper(self, jitted)
        self.jitted = jitted
        self.static = static
        self.names = tuple(inspect.signature(jitted).parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jitted, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not _in_use:
            return self.jitted(*args, **options)
        file = _in_use[-1]
        named = [*zip(self.names, args, strict=False)]
        arrays = [value for name, value in named if name not in self.static]
        others = {name: value for name, value in options.items() if name not in self.static}
        fixed = [(name, value) for name, value in (*named, *options.items()) if name in self.static]
        leaves, tree = jax.tree.flatten((arrays, others))
        key = self, tuple(fixed), tree, *map(_kind, leaves)
        if key not in file.ready:
            file.ready[key] = _program(
                file, self.__name__, self.jitted.lower(*args, **options), leaves
            )
        return file.ready[key](*arrays, **others)


def ahead_of_time(jitted: Any, *, static: Collection[str] = ()) -> AheadOfTime:
    """A jitted function whose programs may come from a file; see `in_use`.

    Args:
      jitted: of `jax.jit`.
      static: names of its static arguments.
    """
    return AheadOfTime(jitted, static)


def _program(file: Executables, name: str, lowered: Any, leaves: Iterable[Any]) -> Any:
    """A program of a function, out of a file or compiled."""
    devices = _devices(leaves)
    digest = _digest(lowered, devices)
    if digest not in file.programs:
        log.debug("%s: a program of %s is not in it, and is compiled", file.path, name)
        return lowered.compile()
    if digest in file.taken:
        return file.taken[digest]
    started = time.perf_counter()
    try:
        program = deserialize_and_load(
            file.programs[digest], lowered.in_tree, lowered.out_tree, execution_devices=devices
        )
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise ExecutableError(
            f"{file.path}: its programs must be of these {devices[0].device_kind} devices and "
            f"versions of their libraries: {error}; {WAY_OUT}"
        ) from None
    note_loaded(time.perf_counter() - started)
    file.taken[digest] = program
    log.debug("%s: a program of %s is taken", file.path, name)
    return program


def _kind(leaf: Any) -> tuple[Any, Any]:
    """The properties of an argument on which a program depends."""
    return jax.typeof(leaf), leaf.sharding if isinstance(leaf, jax.Array) else None


def _devices(leaves: Iterable[Any]) -> list[jax.Device]:
    """The devices of a program with these arguments, in its order."""
    placed = [x.sharding for x in leaves if isinstance(x, jax.Array) and x.committed]
    return _devices_of(placed) if placed else jax.devices()[:1]


def _devices_of(shardings: Sequence[Any]) -> list[jax.Device]:
    """The devices of arrays, in the order of their mesh."""
    named = [sharding for sharding in shardings if isinstance(sharding, NamedSharding)]
    if named:
        return list(named[0].mesh.devices.flat)
    return sorted(shardings[0].device_set, key=lambda device: device.id)


def _digest(lowered: Any, devices: Iterable[jax.Device]) -> str:
    """A program's name in a file: it runs on devices of these numbers alone."""
    numbers = [device.id for device in devices]
    return hashlib.sha256(f"{numbers}\n{lowered.as_text()}".encode()).hexdigest()


def _with_versions(made_for: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings as out of JSON, with the versions that can load a program."""
    versions = {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
    return json.loads(json.dumps({**versions, **made_for}))


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Yields "NAME must be WANTED, got FOUND" for each difference between two settings."""
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        found, wanted = dict(enumerate(found)), dict(enumerate(wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**found, **wanted}:
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}")
    elif found != wanted:
        yield f"{name.removeprefix('.')} must be {shown(wanted)}, got {shown(found)}"
