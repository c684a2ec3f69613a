"""The folder of a run: its identity and its finished steps."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rmas_jax.config import ConfigError, RunConfig, dump_config
from rmas_jax.config.paths import relative_paths
from rmas_jax.host.atomic import PARTIAL, write_atomic
from rmas_jax.host.checksums import read_sealed, seal_yaml, write_sealed
from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.preemption import end_if_due
from rmas_jax.host.processes import broadcast_from_first, is_first, on_all
from rmas_jax.host.storage import child, flush, written
from rmas_jax.host.yaml_files import parse_yaml
from rmas_jax.prompts import today
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.identity import environment

# Settings that a resumed run may change: the choice of measurements, each kept under its own name,
# and settings without effect on numbers, those of the mesh and of sharing up to rounding.
MEASURED = ("methods", "rounds", "benchmarks", "seeds")
WITHOUT_EFFECT = ("mesh", "shared_gib", "progress", "tensorboard", "compilation_cache")
MAX_SECONDS = 10**12
TRAINED_WAY_OUT = (
    "put back a copy, or delete it and run again: the outer loop then continues from its "
    "checkpoints"
)
UNCLAIMED = {RunFiles.lock, RunFiles.identity + PARTIAL}  # left by a start that was killed early
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunStep:
    """A step of a run; skipped once it is finished and its files are intact."""

    name: str
    lost: Callable[[], str | None] = lambda: None  # its missing or damaged part, if any
    settings: Any = None  # other settings run it again


def missing(*paths: Path) -> str | None:
    """The first missing file, as a message; None if all exist."""
    for path in paths:
        if path.is_dir():
            return f"{path}: no regular file"
        if not path.exists():  # reading a pipe raises an error with the remedy
            return f"{path}: no such file"
    return None


def files_of(config: RunConfig) -> RunFiles:
    """The files of the run of a configuration."""
    return RunFiles.at(child(config.output_dir, config.name))


@contextlib.contextmanager
def open_folder(
    config: RunConfig, contents: Mapping[str, Any], steps: Sequence[RunStep] = ()
) -> Iterator[RunFolder]:
    """Makes the folder of a run, or opens that of an earlier start, and locks it.

    The first process writes. A finished run is only read, without a lock, so that it may be on a
    read-only disk. If bad input ends this start before any step is finished, a folder that it made
    is removed. On object storage, a lease stands for the lock, and the first process uploads
    changes after each step and once a minute.

    Args:
      config: of the run.
      contents: digests of the run's inputs, beside its configuration.
      steps: of the run, in order. The last one summarises the others: it runs again if one of them
        does.

    Raises:
      ConfigError: the folder holds something else, one of its files is damaged, or another start of
        the run is active; or processes do not share it or run something else.
    """
    files = files_of(config)
    whole = {"config": config_tree(config), **contents}
    with contextlib.ExitStack() as stack:
        firsts, is_finished, found = broadcast_from_first(
            lambda: (whole, *_claim(files, config, whole, steps, stack))
        )
        on_all(lambda: _check_shared(files, whole, firsts, found))
        yield RunFolder(files, {step.name: step for step in steps}, is_finished)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The open folder of a run: its finished steps and their seconds."""

    files: RunFiles
    steps: Mapping[str, RunStep]  # by name, in order
    is_finished: bool  # whether all steps were, before this start
    reused: list[str] = dataclasses.field(default_factory=list)  # steps of earlier starts

    def do(self, name: str, work: Callable[[], Any]) -> None:
        """Runs a step, unless it is finished with the same settings, and logs which.

        Raises:
          ConfigError: the files of finished steps are damaged.
          PreemptedError: SIGTERM came before the step.
        """
        step = self.steps[name]
        done, settings, lost = broadcast_from_first(
            lambda: (_seconds(self.files), _settings(self.files), step.lost())
        )
        if name in done and settings.get(name) == _as_json(step.settings):
            if lost is None:
                log.info("%s: finished before in %.0f s, reused", name, done[name])
                self.reused.append(name)
                return
            log.warning("%s: finished before, runs again: %s", name, lost)
        end_if_due(f"before the step {name!r}; finished steps are kept")
        log.info("%s ...", name)
        started = time.perf_counter()
        work()
        done.pop([*self.steps][-1], None)
        done[name] = round(done.get(name, 0) + time.perf_counter() - started, 1)
        settings[name] = step.settings
        broadcast_from_first(lambda: write_sealed(self.files.steps, settings))
        broadcast_from_first(lambda: write_sealed(self.files.timings, done))
        broadcast_from_first(flush)
        on_all(lambda: None if is_first() else self.files.pull())


def _claim(
    files: RunFiles,
    config: RunConfig,
    whole: dict[str, Any],
    steps: Sequence[RunStep],
    stack: contextlib.ExitStack,
) -> tuple[bool, str]:
    """Claims the folder for this run, unless all its steps are finished.

    Args:
      files: of the run.
      config: of the run.
      whole: the configuration and digests of all inputs.
      steps: of the run.
      stack: receives the lock and the cleanup, which end with this start.

    Returns:
      Whether all is finished; the environment as written.
    """
    fixed = config_tree(config)
    for section, names in (("evaluation", MEASURED), ("runtime", WITHOUT_EFFECT)):
        for name in names:
            del fixed[section][name]
    identity = _as_json({**whole, "config": fixed})
    files.pull()
    # Before any write into a folder of something else.
    if _holds(files, identity) and steps and all(_is_done(files, step) for step in steps):
        return True, _environment(files)
    files.root.mkdir(parents=True, exist_ok=True)
    if files.mirror is None:
        _lock(files, stack)
    else:
        stack.enter_context(written(files.mirror))
        files.pull()  # another start may just have ended
    if not _holds(files, identity):  # another start may just have made it
        write_sealed(files.identity, identity)
        stack.push(lambda kind, error, trace: _remove_if_refused(files, error))
    write_atomic(files.config, seal_yaml(dump_config(config)))
    write_sealed(files.environment, environment())
    flush()
    return False, _environment(files)


def _holds(files: RunFiles, identity: dict[str, Any]) -> bool:
    """Whether the folder is this run's already; a ConfigError if it belongs to something else."""
    if files.identity.exists():
        before = read_identity(files)
        if before != identity:
            raise ConfigError(
                f"{files.root} holds another run's results; it differs in "
                f"{', '.join(_differences(before, identity))}. Choose another name "
                "(--set name=...) or remove the folder"
            )
        return True
    if files.root.is_dir() and {file.name for file in files.root.iterdir()} - UNCLAIMED:
        raise ConfigError(f"{files.root} must be empty or the folder of a run, got other files")
    return False


def _lock(files: RunFiles, stack: contextlib.ExitStack) -> None:
    """Locks the folder until `stack` or the process ends."""
    descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{files.root} is in use by another start of this run; wait for its end, or choose "
            "another name (--set name=...)"
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): start no second run there", files.root, error)


def _remove_if_refused(files: RunFiles, error: BaseException | None) -> None:
    """Removes a new folder without results after bad input."""
    if isinstance(error, InputError | ImportError) and not files.timings.exists():
        shutil.rmtree(files.root, ignore_errors=True)


def _check_shared(
    files: RunFiles, whole: dict[str, Any], firsts: dict[str, Any], found: str
) -> None:
    """Checks that this process has the first one's run and sees its files."""
    if not is_first():
        files.pull()
    if whole != firsts:
        raise ConfigError(
            "the processes were started for different runs; they differ in "
            f"{', '.join(_differences(firsts, whole))}"
        )
    if _environment(files) != found:
        raise ConfigError(
            f"output_dir must be a folder that all processes share, got {files.root}: process "
            f"{jax.process_index()} does not see the first one's files in it"
        )


def _environment(files: RunFiles) -> str:
    path = files.environment
    return path.read_text(errors="replace") if path.is_file() else ""


def _is_done(files: RunFiles, step: RunStep) -> bool:
    return (
        step.name in _seconds(files)
        and _settings(files).get(step.name) == _as_json(step.settings)
        and step.lost() is None
    )


def _seconds(files: RunFiles) -> dict[str, float]:
    """Seconds of finished steps."""
    way_out = (
        "put back a copy, or delete it and run again: the inner loop then runs again, phases "
        "continue from their checkpoints, and measurements are kept"
    )
    found = read_sealed(files.timings, error=ConfigError, way_out=way_out)
    for name, seconds in found.items():
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not (is_number and 0 <= seconds < MAX_SECONDS):  # NaN is not
            raise ConfigError(
                f"{files.timings}: {name} must be a number of seconds, got {shown(seconds)}; "
                f"{way_out}"
            )
    return found


def _settings(files: RunFiles) -> dict[str, Any]:
    """Variable settings by step, as of the step's end."""
    way_out = "put back a copy, or delete it and run again: measurements are kept"
    return read_sealed(files.steps, error=ConfigError, way_out=way_out)


def read_identity(files: RunFiles) -> dict[str, Any]:
    """The identity of a folder's run, as written by `open_folder`.

    Raises:
      ConfigError: the file is damaged.
    """
    way_out = f"put back a copy, or remove {files.root} to run from the start"
    return read_sealed(files.identity, error=ConfigError, way_out=way_out)


def _as_json(value: Any) -> Any:
    """A value after a round trip through JSON."""
    return json.loads(json.dumps(value))


def dated(config: RunConfig) -> RunConfig:
    """The configuration with a date for chat templates: as set, of the first start, or today."""
    if config.system.date is not None:
        return config
    files = files_of(config)
    files.pull()
    identity = read_identity(files)
    return with_date(config, value_at(identity, "config", "system", "date"))


def with_date(config: RunConfig, began: Any) -> RunConfig:
    """The configuration with a date: as set, `began` if it is text, or today."""
    date = config.system.date or (began if isinstance(began, str) and began else today())
    return dataclasses.replace(config, system=dataclasses.replace(config.system, date=date))


def value_at(tree: Any, *names: str) -> Any:
    """The value at nested names; None if missing, for a tree of any shape."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def find_trained_links(config: RunConfig) -> Path | None:
    """The trained links of a configuration's run; None if it has none.

    Raises:
      ConfigError: they belong to a system that differs in more than rounds, thoughts and date.
    """
    files = files_of(config)
    files.pull()
    links = files.trained_links
    if not links.is_file():
        return None
    wanted = config_tree(config)["system"]
    trained = value_at(read_identity(files), "config", "system")
    if not isinstance(trained, dict):
        raise ConfigError(
            f"{files.identity}: config.system must be the system of {links}, got "
            f"{shown(trained)}; put back a copy, or name links with --links"
        )
    free = ("rounds", "latent_steps", "thinking", "sweeps", "date")
    before, now = ({k: v for k, v in s.items() if k not in free} for s in (trained, wanted))
    if before != now:
        raise ConfigError(
            f"{links} belongs to another system; it differs in "
            f"{', '.join(_differences(before, now, '.system'))}. Choose the run that trained this "
            "one (--set name=...), or name links with --links"
        )
    return links


def config_tree(config: RunConfig) -> dict[str, Any]:
    """A configuration after a round trip through its file, with relative paths."""
    tree = parse_yaml(dump_config(config), source=RunFiles.config, error=ConfigError)
    return relative_paths(tree)


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Dotted names of the differences between two nested settings."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in sorted({*before, *after})
            for difference in _differences(before.get(key), after.get(key), f"{where}.{key}")
        ]
    return [] if before == after else [where.removeprefix(".").removeprefix("config.")]
