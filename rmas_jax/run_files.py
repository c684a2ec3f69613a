"""The files of a run: the only definition of their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import overload

from rmas_jax.host.storage import Mirror, child, is_remote, local_copy, open_mirror

SHARED_FOLDERS = DATA, STATES = "data", "states"  # of OUTPUT_DIR, beside the folders of runs


class Name:
    """The name of a file: text as an attribute of the class, a path as an attribute of an instance.

    `RunFiles.results` is "results.json"; `RunFiles(root).results` is the path below `root`.
    """

    def __init__(self, name: str):
        self.name = name

    @overload
    def __get__(self, files: None, owner: type) -> str: ...
    @overload
    def __get__(self, files: RunFiles | AuditFiles, owner: type) -> Path: ...
    def __get__(self, files: RunFiles | AuditFiles | None, owner: type) -> str | Path:
        return self.name if files is None else files.root / self.name


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Paths of the files of a run; creates none of them."""

    root: Path  # OUTPUT_DIR/NAME or, on object storage, this process's copy of it
    url: str | None = None  # on object storage

    # Identity and progress.
    config = Name("config.yaml")
    identity = Name("identity.json")  # digests of all inputs
    environment = Name("environment.json")  # machine and library versions
    timings = Name("timings.json")  # finished steps and their seconds
    steps = Name("steps.json")  # settings of each finished step
    lock = Name("lock")
    # Training.
    bad_rows = Name("bad_rows.jsonl")  # rows of the data that were left out
    aligned_links = Name("links/aligned.safetensors")  # after the inner loop
    trained_links = Name("links/trained.safetensors")  # after the outer loop
    released_links = Name("links/released")  # a folder: the trained links in upstream's layout
    tuned = Name("tuned")  # a folder: adapters of the answerer
    checkpoints = Name("checkpoints")  # a folder per phase and per adapter
    metrics = Name("metrics.jsonl")  # training curves
    tensorboard = Name("tensorboard")
    # Evaluation.
    results = Name("results.json")  # a row per measurement
    items = Name("items.jsonl")  # a line per question and measurement
    under_way = Name("under_way.jsonl")  # rollouts of the measurement under way
    gradients = Name("gradients.json")
    audit = Name("audit")  # a folder of `AuditFiles`
    # Reporting.
    report = Name("report.html")
    markdown = Name("report.md")
    figures = Name("figures")
    tables = Name("tables")

    @classmethod
    def at(cls, path: str) -> RunFiles:
        """The files of the folder at a path or a URL."""
        return cls(local_copy(path), path if is_remote(path) else None)

    @property
    def mirror(self) -> Mirror | None:
        """The folder on object storage; its checkpoints have a mirror for each phase."""
        apart = (RunFiles.checkpoints, RunFiles.lock)
        return None if self.url is None else open_mirror(self.url, apart=apart)

    def pull(self) -> None:
        """Updates this process's copy, if the folder is on object storage."""
        if self.mirror is not None:
            self.mirror.pull()

    def shared_mirror(self, name: str) -> Mirror | None:
        """One of the `SHARED_FOLDERS` on object storage."""
        if self.url is None:
            return None
        return open_mirror(child(self.url.rpartition("/")[0], name))

    def checkpoint_mirror(self, phase: str) -> Mirror | None:
        """The checkpoints of a phase on object storage; see `checkpoints_of`."""
        if self.url is None:
            return None
        return open_mirror(child(self.url, RunFiles.checkpoints, phase))

    def address(self, path: Path) -> str:
        """A path of the run, for users: a URL on object storage."""
        if self.url is None:
            return str(path)
        return child(self.url, path.relative_to(self.root).as_posix())

    @property
    def data(self) -> Path:
        """Prepared data, shared by runs: beside their folders."""
        return self.root.parent / DATA

    @property
    def states(self) -> Path:
        """Agents' states over role texts, shared by runs: beside their folders."""
        return self.root.parent / STATES

    def checkpoints_of(self, phase: str) -> Path:
        """The folder with the checkpoints of a phase of the outer loop, or of an adapter."""
        return self.checkpoints / phase

    def adapter(self, name: str) -> Path:
        """The file of an adapter after its training."""
        return self.tuned / f"{name}.safetensors"

    def figure(self, name: str) -> Path:
        """The image file of a figure of the report."""
        return self.figures / f"{name}.png"

    def table(self, name: str) -> Path:
        """The CSV file of a table of the report."""
        return self.tables / f"{name}.csv"


@dataclasses.dataclass(frozen=True)
class AuditFiles:
    """Paths of the files of an audit."""

    root: Path  # OUTPUT_DIR/NAME/audit

    protocol = Name("protocol.json")  # declared before anything is trained or measured
    links = Name("links.sha256")  # of the links that are measured
    results = Name(RunFiles.results)  # a row per condition
    items = Name(RunFiles.items)
    markdown = Name(RunFiles.markdown)
