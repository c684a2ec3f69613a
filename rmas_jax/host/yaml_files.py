"""Strict, bounded reading of users' YAML.

Plain scalars follow YAML 1.2's core schema: `1e-3` is a number, `yes` and a date are text. Repeated
keys are refused, and so are anchors whose aliases and merges would expand the file beyond
MAX_VALUES values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rmas_jax.host.errors import InputError, clipped, shown
from rmas_jax.host.reading import KIBIBYTE, read_text

MAX_BYTES = 256 * KIBIBYTE
MERGE = "tag:yaml.org,2002:merge"
MAX_VALUES = 20_000  # keys, texts, numbers, lists and mappings, each alias counted as a copy


def read_yaml(path: str | Path, *, error: type[InputError]) -> Any:
    """The value in a YAML file; see `parse_yaml`."""
    return parse_yaml(read_text(path, at_most=MAX_BYTES, error=error), source=path, error=error)


def parse_yaml(text: str, *, source: str | Path, error: type[InputError]) -> Any:
    """The value of a YAML text.

    Raises:
      error: the text is not YAML, too long or too large, or repeats a key; the message names
        `source`, line and column.
    """
    if len(text) > MAX_BYTES:
        raise error(f"{source}: must be at most {MAX_BYTES} characters, got {len(text)}")
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise error(f"{source}: must be YAML: too deep nesting") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as reason:
        # PyYAML's constructors raise the last three for `!!timestamp x`, `!!int {}` ...
        mark = getattr(reason, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(reason, "problem", None) or str(reason)
        raise error(f"{source}: must be YAML{where}: {clipped(what, 200)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Refuses a document that is too large after expansion of all aliases."""
    sizes: dict[int, int | None] = {}  # by id; None while its children are counted

    def count(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise yaml.constructor.ConstructorError(
                problem="an anchor contains itself", problem_mark=node.start_mark
            )
        if known:
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(count(key) + count(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(map(count, node.value))
        if total > MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                problem=f"more than {MAX_VALUES} values, with aliases counted as copies",
                problem_mark=node.start_mark,
            )
        sizes[id(node)] = total
        return total

    count(root)


class Loader(yaml.SafeLoader):
    """Refuses repeated keys, of which YAML's own loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                is_repeated = key in keys
            except TypeError:
                raise yaml.constructor.ConstructorError(
                    problem="a key is a list or a mapping", problem_mark=key_node.start_mark
                ) from None
            if is_repeated:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {shown(key)} is given twice", problem_mark=key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """Quotes text that `Loader` would read as another type."""


# PyYAML follows 1.1, where 1e-3 is text, `yes` and `off` are booleans, 010 is eight and 1:30 is
# ninety. The merge key `<<`, which 1.2 dropped, stays.
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
        )
