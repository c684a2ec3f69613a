"""The folder of a run: whose it is, and what is finished."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
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
from rmas_jax.host.yaml_files import parse_yaml
from rmas_jax.prompts import today
from rmas_jax.runs.identity import contents, environment

ENVIRONMENT, IDENTITY, LOCK = "environment.json", "identity.json", "lock"
# What a run may change when it goes on: which measurements are made, of which each is kept under
# its own name, and what moves no number.
MEASURED = ("methods", "rounds", "splits")
NO_MATTER = ("progress", "tensorboard", "compilation_cache")
MAX_SECONDS = 10**12
TRAINED_WAY_OUT = (
    "put back a copy, or delete it and run again: the outer loop then goes on from its checkpoints"
)
UNCLAIMED = {LOCK, IDENTITY + PARTIAL}  # what a start may leave that was killed at once
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunStep:
    """A step of a run, which is not run again once it is finished and its files are there."""

    name: str
    lost: Callable[[Path], str | None] = lambda folder: None  # what is gone or damaged of its files
    settings: Any = None  # with others it runs again

    @classmethod
    def of_files(cls, name: str, *files: str, settings: Any = None) -> RunStep:
        """A step that writes files, named within the folder."""

        def lost(folder: Path) -> str | None:
            paths = [folder / file for file in files]
            # A pipe in the place of a file is refused where it is read, with the way out.
            gone = [path for path in paths if path.is_dir() or not path.exists()]
            what = "no regular file" if gone and gone[0].exists() else "no such file"
            return f"{gone[0]}: {what}" if gone else None

        return cls(name, lost, settings)


class RunFolder:
    """The folder of a run: its configuration, its finished steps and how long they took.

    Of several processes the first writes here and says what is finished. It keeps other starts of
    the run out until this ends, as a context. A run of which everything is finished is only read:
    it takes no lock and writes nothing, so that it may lie where nothing can be written.
    """

    def __init__(
        self,
        config: RunConfig,
        weights_digest: str,
        data_version: str,
        steps: Sequence[RunStep] = (),
    ):
        """Makes the folder, or finds that of an earlier start.

        Args:
          config: of the run.
          weights_digest: see `weights_digest`.
          data_version: of the run's data.
          steps: of the run; where all are finished, nothing is written. The last one sums up the
            others: it runs again where one of them has.

        Raises:
          ConfigError: it holds something else, one of its files is damaged, or another start of the
            run is under way; or processes do not share it or run something else.
        """
        self.path = Path(config.output_dir) / config.name
        self.marks = self.path / "timings.json"  # finished steps and their seconds
        self.asked = self.path / "stages.json"  # what may change, as it was when they finished
        self.unlock: Callable[[], Any] = lambda: None
        self.last = steps[-1].name if steps else None
        self.is_new = False  # whether this start has made the folder
        text = dump_config(config)
        whole = {
            "config": _tree(config),
            "weights": weights_digest,
            "data": data_version,
            **on_all(lambda: contents(config)),
        }
        fixed = _tree(config)
        for section, names in (("evaluation", MEASURED), ("runtime", NO_MATTER)):
            for name in names:
                del fixed[section][name]
        identity = _as_json({**whole, "config": fixed})
        firsts, self.is_finished, found = broadcast_from_first(
            lambda: (whole, *self._claim(identity, text, steps))
        )
        on_all(lambda: self._check_shared(whole, firsts, found))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Frees the folder; one that bad input kept empty of results is removed."""
        refused = isinstance(error, InputError | ImportError)
        if is_first() and self.is_new and refused and not self.marks.exists():
            shutil.rmtree(self.path, ignore_errors=True)
        self.unlock()

    def _claim(
        self, identity: dict[str, Any], config: str, steps: Sequence[RunStep]
    ) -> tuple[bool, str]:
        """Makes the folder this run's, unless there is nothing left to do in it.

        Returns:
          Whether all is finished; the environment as written.
        """
        # Before anything is written into what is not ours.
        if self._holds(identity) and steps and all(self._is_done(step) for step in steps):
            return True, self._environment()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        if not self._holds(identity):  # another start may just have made it
            write_sealed(self.path / IDENTITY, identity)
            self.is_new = True
        write_atomic(self.path / "config.yaml", seal_yaml(config))
        write_sealed(self.path / ENVIRONMENT, environment())
        return False, self._environment()

    def _environment(self) -> str:
        path = self.path / ENVIRONMENT
        return path.read_text(errors="replace") if path.is_file() else ""

    def _holds(self, identity: dict[str, Any]) -> bool:
        """Whether the folder is this run's already; raises where it is something else's."""
        stored = self.path / IDENTITY
        if stored.exists():
            before = read_identity(self.path)
            if before != identity:
                raise ConfigError(
                    f"{self.path} holds another run's results; it differs in "
                    f"{', '.join(_differences(before, identity))}. Choose another name "
                    "(--set name=...) or remove the folder"
                )
        elif self.path.is_dir() and {file.name for file in self.path.iterdir()} - UNCLAIMED:
            raise ConfigError(f"{self.path} is not empty and holds no run of ours")
        return stored.exists()

    def _lock(self) -> None:
        """Keeps other starts out until `unlock`, or until this object or the process is gone."""
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT)
        self.unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path} is in use by another start of this run; wait for its end, or choose "
                "another name (--set name=...)"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): start no second run there", self.path, error)

    def _check_shared(self, whole: dict[str, Any], firsts: dict[str, Any], found: str) -> None:
        """Whether this process runs what the first one does, and sees what it has written."""
        if whole != firsts:
            raise ConfigError(
                "the processes were started for different runs; they differ in "
                f"{', '.join(_differences(firsts, whole))}"
            )
        if self._environment() != found:
            raise ConfigError(
                f"output_dir: process {jax.process_index()} does not see in {self.path} what the "
                "first process has written; allowed is a folder that all processes share"
            )

    def stage(self, step: RunStep, run: Callable[[], Any]) -> None:
        """Runs a step, unless it was finished before with the same settings, and says which.

        Raises:
          ConfigError: the files that say what is finished are damaged.
          PreemptedError: SIGTERM came before it.
        """
        done, asked, lost = broadcast_from_first(
            lambda: (self._seconds(), self._settings(), step.lost(self.path))
        )
        if step.name in done and asked.get(step.name) == _as_json(step.settings):
            if lost is None:
                log.info("%s: finished before in %.0f s, reused", step.name, done[step.name])
                return
            log.warning("%s: finished before, and done anew: %s", step.name, lost)
        end_if_due(f"before the stage {step.name!r}; what is finished is kept")
        log.info("%s ...", step.name)
        started = time.perf_counter()
        run()
        done.pop(self.last, None)
        done[step.name] = round(done.get(step.name, 0) + time.perf_counter() - started, 1)
        asked[step.name] = step.settings
        broadcast_from_first(lambda: write_sealed(self.asked, asked))
        broadcast_from_first(lambda: write_sealed(self.marks, done))

    def _is_done(self, step: RunStep) -> bool:
        is_marked = step.name in self._seconds()
        return (
            is_marked
            and self._settings().get(step.name) == _as_json(step.settings)
            and step.lost(self.path) is None
        )

    def _seconds(self) -> dict[str, float]:
        """Finished steps and how long they took."""
        way_out = (
            "put back a copy, or delete it and run again: the inner loop is then done anew, phases "
            "go on from their checkpoints, and what was measured stays"
        )
        found = read_sealed(self.marks, error=ConfigError, way_out=way_out)
        for name, seconds in found.items():
            is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if not (is_number and 0 <= seconds < MAX_SECONDS):  # NaN is not
                raise ConfigError(
                    f"{self.marks}: {name} must be a number of seconds, got {shown(seconds)}; "
                    f"{way_out}"
                )
        return found

    def _settings(self) -> dict[str, Any]:
        """What may change between starts, by step, as it was when the step finished."""
        way_out = "put back a copy, or delete it and run again: what was measured stays"
        return read_sealed(self.asked, error=ConfigError, way_out=way_out)


def read_identity(folder: Path) -> dict[str, Any]:
    """What the run of a folder is, as `RunFolder` wrote it.

    Raises:
      ConfigError: the file is damaged.
    """
    way_out = f"put back a copy, or remove {folder} to run from the start"
    return read_sealed(folder / IDENTITY, error=ConfigError, way_out=way_out)


def _as_json(value: Any) -> Any:
    """A value as it will be read again."""
    return json.loads(json.dumps(value))


def dated(config: RunConfig) -> RunConfig:
    """The configuration with a date for chat templates: as set, as the run began, or today's."""
    if config.system.date is not None:
        return config
    identity = read_identity(Path(config.output_dir) / config.name)
    return with_date(config, value_at(identity, "config", "system", "date"))


def with_date(config: RunConfig, began: Any) -> RunConfig:
    """The configuration with a date: as set, `began` if that is text, or today's."""
    date = config.system.date or (began if isinstance(began, str) and began else today())
    return dataclasses.replace(config, system=dataclasses.replace(config.system, date=date))


def value_at(tree: Any, *names: str) -> Any:
    """What stands under nested names; None where nothing does, whatever shape the tree has."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def find_trained_links(config: RunConfig) -> Path | None:
    """The links that the run of a configuration has trained; None where it has trained none.

    Raises:
      ConfigError: they are those of another system, beside its rounds, latent steps and date.
    """
    folder = Path(config.output_dir) / config.name
    links = folder / "links" / "trained.safetensors"
    if not links.is_file():
        return None
    asked_for = _tree(config)["system"]
    identity = read_identity(folder)
    try:
        trained_for = dict(identity["config"]["system"].items())
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{folder / IDENTITY}: must say for which system {links} was trained; put back a copy, "
            "or name links with --links"
        ) from None
    free = ("rounds", "latent_steps", "date")
    before, now = ({k: v for k, v in s.items() if k not in free} for s in (trained_for, asked_for))
    if before != now:
        raise ConfigError(
            f"{links} belongs to another system; it differs in "
            f"{', '.join(_differences(before, now, '.system'))}. Choose the run that trained this "
            "one (--set name=...), or name links with --links"
        )
    return links


def _tree(config: RunConfig) -> dict[str, Any]:
    """A configuration as its file is read again."""
    tree = parse_yaml(dump_config(config), source="config.yaml", error=ConfigError)
    return relative_paths(tree)


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Dotted names of what two nested settings do not agree on."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in sorted({*before, *after})
            for difference in _differences(before.get(key), after.get(key), f"{where}.{key}")
        ]
    return [] if before == after else [where.removeprefix(".").removeprefix("config.")]
