"""The files of a run: the one place where their names stand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import overload

SHARED_FOLDERS = DATA, STATES = "data", "states"  # of OUTPUT_DIR, beside the folders of runs


class Name:
    """The name of a file: a text on the class it is declared in, a path on a value of that class.

    `RunFiles.results` is "results.json"; `RunFiles(root).results` is its path below `root`.
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
    """Paths of the files of a run; makes none of them."""

    root: Path  # OUTPUT_DIR/NAME

    # Which run it is, and what of it is finished.
    config = Name("config.yaml")
    identity = Name("identity.json")  # what it is made of
    environment = Name("environment.json")  # what it ran on
    timings = Name("timings.json")  # finished steps and their seconds
    steps = Name("steps.json")  # the settings that each step was finished with
    lock = Name("lock")
    # What training writes.
    bad_rows = Name("bad_rows.jsonl")  # of the data, left out
    aligned_links = Name("links/aligned.safetensors")  # after the inner loop
    trained_links = Name("links/trained.safetensors")  # after the outer loop
    released_links = Name("links/released")  # the trained ones as upstream stores them; a folder
    checkpoints = Name("checkpoints")  # a folder per phase
    metrics = Name("metrics.jsonl")  # training curves
    tensorboard = Name("tensorboard")
    # What evaluation writes.
    results = Name("results.json")  # a row per measurement
    items = Name("items.jsonl")  # a line per question and measurement
    gradients = Name("gradients.json")
    audit = Name("audit")  # a folder of `AuditFiles`
    # What reporting writes.
    report = Name("report.html")
    markdown = Name("report.md")
    figures = Name("figures")

    @property
    def data(self) -> Path:
        """Prepared data, which runs share: beside their folders."""
        return self.root.parent / DATA

    @property
    def states(self) -> Path:
        """States of agents over role texts, which runs share: beside their folders."""
        return self.root.parent / STATES

    def checkpoints_of(self, phase: str) -> Path:
        """The folder with the checkpoints of a phase of the outer loop."""
        return self.checkpoints / phase

    def figure(self, name: str) -> Path:
        """The image of a figure of the report."""
        return self.figures / f"{name}.png"


@dataclasses.dataclass(frozen=True)
class AuditFiles:
    """Paths of the files of an audit."""

    root: Path  # OUTPUT_DIR/NAME/audit

    protocol = Name("protocol.json")  # declared before anything is measured
    results = Name(RunFiles.results)  # a row per condition
    items = Name(RunFiles.items)
    markdown = Name(RunFiles.markdown)
