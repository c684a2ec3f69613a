"""Reads a configuration strictly from YAML with overrides, and writes it.

Checks a whole file first, and reports all its problems in one `ConfigError`.
"""

import copy
import dataclasses
import difflib
import itertools
import json
import os
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml

from rmas_jax.config.benchmark import BenchmarkConfig
from rmas_jax.config.fields import KINDS, MAX_ITEMS, Option, Section, split_optional
from rmas_jax.config.paths import absolute_paths, find_config, shipped_configs
from rmas_jax.config.sections import RunConfig
from rmas_jax.host.errors import InputError, clipped, shown
from rmas_jax.host.inputs import local_input
from rmas_jax.host.storage import is_remote
from rmas_jax.host.yaml_files import Dumper, parse_yaml, read_yaml

MAX_OVERRIDES = 1000
MAX_PROBLEMS = 20  # listed at most
MAX_DEPTH = 10  # of a field's path


class ConfigError(InputError):
    """An unusable configuration: names file, field, value and the allowed values."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's configuration.

    Args:
        path: a YAML file, its URL, or the name of a shipped configuration. `1e-3` is a number and
            `yes` is text, as in YAML 1.2. Paths in it are relative to its folder.
        overrides: `section.field=value` strings, the value in YAML; later ones win. Items of lists
            have numbers: `outer.phases.0.steps=10`. Paths in them are relative to the current
            folder.

    Returns:
        The checked configuration; paths are absolute, except `output_dir`, which is relative to the
        current folder.

    Raises:
        ConfigError: the file cannot be read, or it or an override is invalid. The message lists all
            problems.
    """
    if len(overrides) > MAX_OVERRIDES:
        raise ConfigError(f"overrides must be at most {MAX_OVERRIDES}, got {len(overrides)}")
    return _load(RunConfig, path if is_remote(path) else find_config(path), overrides)


def load_benchmark_config(path: str | Path) -> BenchmarkConfig:
    """Reads a benchmark's file; see `load_config`."""
    return _load(BenchmarkConfig, path, ())


def _load(kind: type, file: str | Path, overrides: Sequence[str]) -> Any:
    """Reads a file, maybe at a URL, whose root is the section `kind`."""
    tree = absolute_paths(_read(local_input(file)), os.path.dirname(file), kind)
    changed = {_apply(tree, override): override for override in overrides}
    tree = absolute_paths(tree, "", kind)
    found = _problems(kind, tree, Option("the whole file"), ())
    problems = list(itertools.islice(found, MAX_PROBLEMS + 1))
    if not problems:
        config = draccus.decode(kind, tree)
        problems = list(_conflicts(config, ()))
    if problems:
        lines = []
        for where, message in problems:
            # The overrides of this field, of the section around it, or of its parts.
            causes = [
                f" (from override {shown(override, 500)})"
                for field, override in changed.items()
                if field[: len(where)] == where[: len(field)]
            ]
            name = clipped(".".join(where), 200)
            lines.append(name + " " * bool(where) + message + "".join(causes[-1:]))
        head = "" if len(lines) == 1 else f"{len(lines)} problems\n  "
        if len(lines) > MAX_PROBLEMS:
            head = f"more than {MAX_PROBLEMS} problems, the first are\n  "
            del lines[MAX_PROBLEMS:]
        raise ConfigError(f"{file}: {head}" + "\n  ".join(lines))
    return config


def dump_config(config: RunConfig) -> str:
    """`config`, all defaults included, as YAML from which `load_config` reads an equal value."""
    tree = dataclasses.asdict(config)
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def field_help() -> str:
    """Every field with its allowed values, default and meaning, for `--help`."""
    return "\n".join(
        f"{name}: {limits.allowed(expected)} ({default})\n    {limits.help}"
        for name, expected, limits, default in _described(RunConfig, "")
    )


def _described(section: type, prefix: str) -> Iterator[tuple[str, Any, Option, str]]:
    """Yields (dotted name, type, option, default in words) of all fields below `section`.

    Without sections themselves; fields of a list's items have `N` for the item's number.
    """
    for field in dataclasses.fields(section):
        expected, name = field.type, prefix + field.name
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            yield from _described(expected, f"{name}.")
            continue
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = f"default {json.dumps(field.default)}"
        yield name, expected, field.metadata["option"], default
        item = next(iter(typing.get_args(expected)), None)
        if isinstance(item, type) and dataclasses.is_dataclass(item):
            number = "N." if typing.get_origin(expected) is tuple else ""
            yield from _described(item, f"{name}.{number}")


# A problem is the path of a field and a message, whose subject is the field.
_Path = tuple[str, ...]
_Problem = tuple[_Path, str]


def _problems(expected: Any, value: Any, limits: Option, path: _Path) -> Iterator[_Problem]:
    """Yields the problems of the parsed YAML `value` as a field of type `expected`."""
    kind, is_nullable = split_optional(expected)
    container, arguments = typing.get_origin(kind), typing.get_args(kind)
    if value is None and is_nullable:
        return
    is_section = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    if is_section and isinstance(value, dict):
        yield from _section_problems(kind, value, path)
    elif container in (dict, tuple) and isinstance(value, (dict, list)) and len(value) > MAX_ITEMS:
        yield path, f"must be {limits.allowed(kind, value)}, got {len(value)}"
    elif container is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _problems(str, key, Option("a key"), (*path, str(key)))
            yield from _problems(arguments[1], item, limits, (*path, str(key)))
    elif container is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(arguments[0], item, limits, (*path, str(index)))
        if limits.distinct and (not value or any(value.count(item) > 1 for item in value)):
            yield path, f"must be {limits.allowed(kind)}, got {_show(value)}"
    elif kind not in KINDS or not limits.admits(kind, value):
        advice = ""
        if kind is str and type(value) in (bool, int, float) and not limits.choices:
            advice = "; put it in quotes to make it text"
        yield path, f"must be {limits.allowed(expected, value)}, got {_show(value)}{advice}"


def _section_problems(section: type, tree: dict, path: _Path) -> Iterator[_Problem]:
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key, value in tree.items():
        if key in fields:
            field = fields[key]
            yield from _problems(field.type, value, field.metadata["option"], (*path, key))
            continue
        close = difflib.get_close_matches(str(key)[:100], fields, n=1)
        close += [name for name, *_ in _described(RunConfig, "") if name.endswith(f".{key}")]
        advice = f"did you mean {' or '.join(close)}? " if close else ""
        yield (
            (*path, str(key)),
            f"is an unknown key (value {_show(value)}); {advice}must be one of {', '.join(fields)}",
        )
    for name, field in fields.items():
        if name not in tree and field.default is dataclasses.MISSING:
            limits = field.metadata["option"]
            yield (*path, name), f"must be {limits.allowed(field.type)}, got nothing"


def _conflicts(section: Section, path: _Path) -> Iterator[_Problem]:
    """Yields the conflicts of a section and its subsections."""
    for name, message in section.conflicts():
        yield (*path, name), message
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, Section):
            yield from _conflicts(value, (*path, field.name))
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _conflicts(item, (*path, field.name, str(index)))


def _apply(tree: Any, override: str) -> _Path:
    """Sets one `a.b.c=value` in the parsed file, makes missing sections, and returns the path."""
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(
            f"override must be field=value, such as inner.steps=200, got {shown(override, 500)}"
        )
    if len(path) > MAX_DEPTH:
        raise ConfigError(
            f"override {shown(override, 500)}: a field's path must have at most {MAX_DEPTH} parts, "
            f"got {len(path)}"
        )
    value = parse_yaml(text, source=f"override {shown(override, 500)}", error=ConfigError)
    # Copies each value on the path: a YAML anchor and its aliases are one object.
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(tree, dict):
            tree[part] = value if is_last else copy.copy(tree.get(part, {}))
            tree = tree[part]
        elif isinstance(tree, list) and _is_index(part, len(tree)):
            index = int(part)
            tree[index] = value if is_last else copy.copy(tree[index])
            tree = tree[index]
        else:
            around = ".".join(path[:depth]) or "the file"
            held = f"{len(tree)} items, counted from 0" if isinstance(tree, list) else _show(tree)
            raise ConfigError(
                f"override {shown(override, 500)}: must name a part of {around} ({held}), got "
                f"{shown(part)}"
            )
    return path


def _is_index(part: str, count: int) -> bool:
    return part.isdecimal() and len(part) <= len(str(count)) and int(part) < count


def _read(path: Path) -> Any:
    try:
        return read_yaml(path, error=ConfigError)
    except ConfigError as error:
        if os.path.lexists(path):
            raise
        near = difflib.get_close_matches(path.name, _yaml_files_beside(path))
        beside = f"; in the same folder: {', '.join(near)}" if near else ""
        shipped = "" if path.suffix else f"; shipped: {', '.join(shipped_configs())}"
        raise ConfigError(f"{error}{beside}{shipped}") from None


def _yaml_files_beside(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.glob("*.y*ml")]
    except (OSError, ValueError):
        return []


def _show(value: Any) -> str:
    """`value` for a message: approximately as in YAML, of bounded length."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)
