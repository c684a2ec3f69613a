"""Paths in a configuration: relative to the file's folder, or else to the current one; or URLs."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Callable
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from rmas_jax.config.fields import split_optional
from rmas_jax.config.sections import RunConfig
from rmas_jax.host.storage import is_remote

SHIPPED = Path(str(resources.files("rmas_jax.config")))
# Kind of a path field (`Option.path`) -> texts that are names instead of paths. A hub id is a path
# if that path exists; a data set's has no suffix of a data file.
NAMES = {
    "file": r"(?!)",
    "file or name": r"[^/.]+",
    "data": r"[^/.]+|(?!.*\.(?:csv|json|jsonl|ndjson|parquet|bz2|gz|zst)$)[\w-][\w.-]*/[\w.-]+",
    # OWNER/NAME, or NAME alone, and a file of a hub repository in the format GGUF.
    "hub": r"(?!.*\.(?:safetensors|gguf)$)[\w-][\w.-]*(/[\w.-]+)?(@.+)?"
    r"|[\w-][\w.-]*/[\w.-]+/[^@]+\.gguf(@.+)?",
}


def shipped_configs() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def find_config(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped configuration by name, or an unchanged path."""
    is_shipped = str(name_or_path) in shipped_configs()
    return SHIPPED / f"{name_or_path}.yaml" if is_shipped else Path(name_or_path)


def absolute_paths(tree: Any, folder: str | os.PathLike[str], section: type = RunConfig) -> Any:
    """A copy of a parsed section with absolute paths; names stay.

    Args:
      tree: unchecked; values of another type than their field's stay unchanged.
      folder: base of relative paths; may be a URL.
      section: type of the tree.
    """

    def absolute(text: str, kind: str) -> str:
        if not text.strip() or is_remote(text):
            return text
        path = _joined(os.fspath(folder), text)
        is_name = re.fullmatch(NAMES[kind], text) is not None
        may_be_path = kind == "hub" or "/" in text
        return text if is_name and not (may_be_path and os.path.lexists(path)) else path

    return _with_paths(section, tree, absolute)


def _joined(folder: str, text: str) -> str:
    """A path below a folder, or below a URL."""
    scheme, separator, place = folder.partition("://") if is_remote(folder) else ("", "", folder)
    path = os.path.join(place, text)
    if not separator or os.path.isabs(text):
        return os.path.abspath(path)
    return scheme + separator + os.path.normpath(path)


def relative_paths(tree: Any, section: type = RunConfig) -> Any:
    """A copy of a parsed section, with paths below the current folder relative to it.

    The identity of a run then stays the same when the run and its files move.
    """
    return _with_paths(section, tree, lambda text, kind: relative_path(text))


def without_folders(tree: Any, section: type = RunConfig) -> Any:
    """A copy of a parsed section with the last name of each path alone: it may lie elsewhere."""
    return _with_paths(section, tree, lambda text, kind: PurePath(text).name)


def relative_path(text: str) -> str:
    """An absolute path below the current folder relative to it; other texts stay."""
    here = os.path.join(os.getcwd(), "")
    return text.removeprefix(here) or text


def _with_paths(section: type, tree: Any, change: Callable[[str, str], str]) -> Any:
    """A copy of a section's tree with `change(text, kind)` applied to each path."""
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
    """The item type of a list of sections, `tuple[Section, ...]`; None for other types."""
    parts = typing.get_args(expected)
    part = parts[0] if parts else None
    return part if isinstance(part, type) and dataclasses.is_dataclass(part) else None
