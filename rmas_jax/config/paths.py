"""Paths in a configuration: those in a file count from its folder, others from the current one."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from rmas_jax.config.fields import split_optional
from rmas_jax.config.sections import RunConfig

SHIPPED = Path(str(resources.files("rmas_jax.config")))
# Kind of a path field (`Option.path`) -> texts that are names instead of paths. A hub id is a path
# all the same where there is something of that name.
NAMES = {
    "file": r"(?!)",
    "file or name": r"[^/.]+",
    "data": r"[^/.]+|RecursiveMAS/[^/.]+",
    "hub": r"(?!.*\.safetensors$)[\w-][\w.-]*(/[\w.-]+)?(@.+)?",
}


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def find_config(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a configuration that is shipped by name, or a path as it stands."""
    is_shipped = str(name_or_path) in shipped_configs()
    return SHIPPED / f"{name_or_path}.yaml" if is_shipped else Path(name_or_path)


def absolute_paths(tree: Any, folder: str | os.PathLike[str], section: type = RunConfig) -> Any:
    """A copy of a section, as YAML gives it, with absolute paths; names stay.

    Args:
      tree: not checked yet: what is no section, list or text of the right place stays as it is.
      folder: what relative paths count from.
      section: what the tree is of.
    """

    def absolute(text: str, kind: str) -> str:
        if not text.strip():
            return text
        path = os.path.abspath(os.path.join(folder, text))
        is_name = re.fullmatch(NAMES[kind], text) is not None
        return text if is_name and not (kind == "hub" and os.path.lexists(path)) else path

    return _with_paths(section, tree, absolute)


def relative_paths(tree: Any, section: type = RunConfig) -> Any:
    """A copy of a section, as YAML gives it, with paths below the current folder relative to it.

    A run and its files may then be moved together: it is the same run.
    """
    return _with_paths(section, tree, lambda text, kind: relative_path(text))


def relative_path(text: str) -> str:
    """An absolute path relative to the current folder, where it lies below; other texts stay."""
    here = os.path.join(os.getcwd(), "")
    return text.removeprefix(here) or text


def _with_paths(section: type, tree: Any, change: Callable[[str, str], str]) -> Any:
    """A copy of a section's tree with `change(text, kind)` in the place of each path."""
    if not isinstance(tree, dict):
        return tree
    out = dict(tree)
    for field in dataclasses.fields(section):
        value, (expected, _) = tree.get(field.name), split_optional(field.type)
        kind = field.metadata["option"].path
        if dataclasses.is_dataclass(expected) and isinstance(value, dict):
            out[field.name] = _with_paths(typing.cast(type, expected), value, change)
        elif isinstance(value, list) and (of := _section_of(expected)):
            out[field.name] = [_with_paths(of, part, change) for part in value]
        elif kind and isinstance(value, str):
            out[field.name] = change(value, kind)
        elif kind and isinstance(value, dict):
            out[field.name] = {
                key: change(text, kind) if isinstance(text, str) else text
                for key, text in value.items()
            }
    return out


def _section_of(expected: Any) -> type | None:
    """The section that a list has parts of, `tuple[Section, ...]`; None: of something else."""
    parts = typing.get_args(expected)
    part = parts[0] if parts else None
    return part if isinstance(part, type) and dataclasses.is_dataclass(part) else None
