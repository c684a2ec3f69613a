"""Programs that were compiled ahead of time, in a file: saved after a plan, loaded for a run.

A program is found by its whole text before compilation, so a file of another configuration, of
other shapes or of another mesh is of no effect: the program then compiles as usual. A file holds
machine code: load only files of your own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import InputError, shown

FORMAT = "executables of rmas, 1"
log = logging.getLogger(__name__)
_loaded: dict[str, bytes] = {}  # digest -> program, of the file that this process uses


class ExecutableError(InputError):
    """A file of executables that cannot be written or used."""


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


def save_executables(path: str | Path, programs: Iterable[tuple[Any, Any]]) -> None:
    """Writes programs, each as lowered and as compiled (inside `without_cache`).

    Raises:
      ExecutableError: the compiler cannot serialise one.
    """
    found = {}
    for lowered, compiled in programs:
        try:
            found[_digest(lowered)] = serialize(compiled)[0]
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            raise ExecutableError(f"{path}: a program cannot be serialised: {error}") from None
    content = {"format": FORMAT, "jax": jax.__version__, "programs": found}
    write_atomic(Path(path), pickle.dumps(content))


def use_executables(path: str | Path | None) -> None:
    """Loads a file for all later programs of `ahead_of_time` in this process; None: no file.

    Raises:
      ExecutableError: the file cannot be read, or is of another format or version of JAX.
    """
    _loaded.clear()
    if path is None:
        return
    try:
        content = pickle.loads(Path(path).read_bytes())
    except OSError as error:
        raise ExecutableError(f"{path}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise
    except Exception:  # bytes that are no pickle raise errors of many kinds
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ExecutableError(f"{path}: must be a file of rmas plan --executable")
    if content["jax"] != jax.__version__:
        raise ExecutableError(
            f"{path}: must be made with JAX {jax.__version__}, got {shown(content['jax'])}"
        )
    _loaded.update(content["programs"])


def ahead_of_time(jitted: Any, *, mesh: jax.sharding.Mesh | None) -> Callable[..., Any]:
    """A jitted function that takes its programs from the file in use, where they are in it."""
    return _AheadOfTime(jitted, mesh) if _loaded else jitted


@dataclasses.dataclass(eq=False)
class _AheadOfTime:
    """Compiled programs by the shapes of their arguments."""

    jitted: Any
    mesh: jax.sharding.Mesh | None
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, *arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tree, tuple((x.shape, x.dtype, x.sharding) for x in leaves)
        if shapes not in self.programs:
            self.programs[shapes] = self._program(arguments)
        return self.programs[shapes](*arguments)

    def _program(self, arguments: tuple[Any, ...]) -> Any:
        lowered = self.jitted.lower(*arguments)
        if (payload := _loaded.get(_digest(lowered))) is None:
            log.info("a program is not in the file of executables; it is compiled")
            return lowered.compile()
        devices = jax.devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)
        try:
            return deserialize_and_load(
                payload, lowered.in_tree, lowered.out_tree, execution_devices=devices
            )
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            raise ExecutableError(
                f"the executables must be made for {devices[0].device_kind} devices, and with the "
                f"same versions of its libraries: {error}"
            ) from None


def _digest(lowered: Any) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()
