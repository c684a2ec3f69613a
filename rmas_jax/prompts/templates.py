"""Prompts of roles as data: shipped sets, and YAML files of users."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.inputs import local_input
from rmas_jax.host.yaml_files import read_yaml
from rmas_jax.models.plain_text import check_text

FIELD = re.compile(r"\{(\w+)\}")
RESERVED = re.compile("[\ue000-\ue003]")  # used by `chat` in place of fields and texts
GOLD = "answer"  # the column that no prompt may have
TASK_TYPES = "task_types.yaml"  # texts for the fields of prompt sets that depend on the task type
METHODS = "methods.yaml"  # prompts of text methods, for sets without prompts of their own


class PromptError(InputError):
    """An unusable template or chat template."""


@dataclasses.dataclass(frozen=True)
class RolePrompt:
    """Templates of one role; fields are `{question}`, slots named by their sender, and columns."""

    system: str
    first: str
    later: str
    columns: tuple[str, ...] = ()  # fields that a row of the data fills, besides the question


@functools.cache
def shipped_texts(file: str) -> dict[str, dict[str, Any]]:
    """The content of METHODS or TASK_TYPES."""
    return yaml.safe_load(resources.files("rmas_jax.prompts").joinpath(file).read_text())


def task_types() -> dict[str, dict[str, Any]]:
    """Task type -> field of a template -> its text, and `answer_retry` (see the file)."""
    return shipped_texts(TASK_TYPES)


def load_prompts(
    name_or_path: str, edges: Sequence[tuple[str, str]], task_type: str | None = None
) -> dict[str, RolePrompt]:
    """Reads a shipped prompt set by name, or a YAML file.

    Args:
      name_or_path: "relay", or a path.
      edges: (sender, receiver) roles; the receiver's `later` template must have `{sender}`.
      task_type: its texts replace {problem}, {plan} and {finish} in sets with these fields.

    Raises:
      PromptError: names the file, the role and the missing or unknown field.
    """
    if task_type is not None and task_type not in task_types():
        raise PromptError(f"task_type must be one of {sorted(task_types())}, got {task_type!r}")
    path, raw = read_set(name_or_path)
    roles = sorted({role for edge in edges for role in edge})
    if not isinstance(raw, dict) or any(role not in raw for role in roles):
        found = sorted(map(str, raw)) if isinstance(raw, dict) else raw
        raise PromptError(f"{path}: must have the roles {', '.join(roles)}, got {shown(found)}")
    return {
        role: role_prompt(
            raw[role],
            senders={sender for sender, receiver in edges if receiver == role},
            roles=roles,
            task_type=task_type,
            where=f"{path}: {role}",
        )
        for role in roles
    }


def read_set(name_or_path: str) -> tuple[Path, Any]:
    """The file of a prompt set, and its content.

    Raises:
      PromptError: there is no such file, or it is no YAML.
    """
    path = _shipped().get(name_or_path) or local_input(name_or_path)
    if not os.path.exists(path):  # False for impossible paths too
        raise PromptError(
            f"prompts must be a path to a YAML file or one of {sorted(_shipped())}, got "
            f"{shown(name_or_path, 200)}"
        )
    return path, read_yaml(path, error=PromptError)


def _shipped() -> dict[str, Path]:
    """Name -> file of the shipped prompt sets."""
    others = (TASK_TYPES, METHODS)
    folder = Path(str(resources.files("rmas_jax.prompts")))
    return {file.stem: file for file in folder.glob("*.yaml") if file.name not in others}


def role_prompt(
    entry: Any,
    *,
    senders: set[str],
    roles: Sequence[str],
    task_type: str | None,
    where: str,
) -> RolePrompt:
    """A role's templates from a file, checked against its senders."""
    is_texts = isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())
    if not is_texts or "first" not in entry or set(entry) - {"system", "first", "later"}:
        raise PromptError(
            f"{where} must have a text first, and may have system and later, got {shown(entry)}"
        )
    for name, text in entry.items():
        check_text(text, source=f"{where}: {name}", error=PromptError)
        if found := RESERVED.search(text):
            raise PromptError(
                f"{where}: {name} must be free of the private characters U+E000 to U+E003, got "
                f"{found[0]!a} at character {found.start()}"
            )
    texts = {name: _with_task_type(text, task_type, roles, where) for name, text in entry.items()}
    first, later = texts["first"], texts.get("later", texts["first"])
    columns: set[str] = set()
    for template, needed in ((first, set()), (later, senders)):
        fields = set(FIELD.findall(template))
        if lacking := needed - fields:
            raise PromptError(f"{where} must have {sorted(lacking)}, got {shown(template)}")
        if not fields.difference(roles, senders):
            raise PromptError(
                f"{where} must have {{question}} or a column of the data, got {shown(template)}"
            )
        columns |= fields - {"question"} - senders
    if extra := columns.intersection(roles):
        raise PromptError(
            f"{where} must have slots of its senders {sorted(senders)} only, got "
            f"{shown(sorted(extra))}"
        )
    if GOLD in columns:
        raise PromptError(f"{where} must have columns other than the gold {{{GOLD}}}, got it")
    return RolePrompt(texts.get("system", ""), first, later, tuple(sorted(columns)))


def _with_task_type(text: str, task_type: str | None, roles: Sequence[str], where: str) -> str:
    """Fills in the texts of a task type; a field that is also a role's name is its slot."""
    types = task_types()
    fields = {field for texts in types.values() for field in texts} - {"answer_retry", *roles}
    used = fields.intersection(FIELD.findall(text))
    if task_type is None:
        if used:
            raise PromptError(
                f"{where}: task_type must be one of {sorted(types)} for {sorted(used)}, got none"
            )
        return text
    for field in used:
        text = text.replace(f"{{{field}}}", types[task_type][field])
    return text
