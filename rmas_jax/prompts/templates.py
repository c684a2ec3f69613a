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
from rmas_jax.host.yaml_files import read_yaml
from rmas_jax.models.plain_text import check_text

FIELD = re.compile(r"\{(\w+)\}")
RESERVED = re.compile("[\ue000-\ue003]")  # stand for fields and texts while a template renders
TASK_TYPES = "task_types.yaml"  # texts for the task-dependent places of prompt sets


class PromptError(InputError):
    """A template or a chat template cannot be used."""


@dataclasses.dataclass(frozen=True)
class RolePrompt:
    """Templates of one role; `{question}` and slots named by their sender are fields."""

    system: str
    first: str
    later: str


@functools.cache
def task_types() -> dict[str, dict[str, Any]]:
    """Type of task -> place in a prompt -> its text, and `answer_retry` (see the file)."""
    return yaml.safe_load(resources.files("rmas_jax.prompts").joinpath(TASK_TYPES).read_text())


def load_prompts(
    name_or_path: str, edges: Sequence[tuple[str, str]], task: str | None = None
) -> dict[str, RolePrompt]:
    """Reads a shipped prompt set by name, or a YAML file.

    Args:
      name_or_path: "relay", or a path.
      edges: (sender, receiver) roles; the receiver's `later` template must hold `{sender}`.
      task: type of task, whose texts replace {problem}, {plan} and {finish} in sets that have
        these places.

    Raises:
      PromptError: names the file, the role and the missing or unknown field.
    """
    if task is not None and task not in task_types():
        raise PromptError(f"task must be one of {sorted(task_types())}, got {task!r}")
    path = _shipped().get(name_or_path, Path(name_or_path))
    if not os.path.exists(path):  # False for impossible paths too
        raise PromptError(
            f"prompts must be a path to a YAML file or one of {sorted(_shipped())}, got "
            f"{shown(name_or_path, 200)}"
        )
    raw = read_yaml(path, error=PromptError)
    roles = sorted({role for edge in edges for role in edge})
    if not isinstance(raw, dict) or (missing := [r for r in roles if r not in raw]):
        missing = missing if isinstance(raw, dict) else roles
        raise PromptError(f"{path}: prompts of {missing} missing")
    return {
        role: _role_prompt(
            raw[role],
            senders={sender for sender, receiver in edges if receiver == role},
            roles=roles,
            task=task,
            where=f"{path}: {role}",
        )
        for role in roles
    }


def _shipped() -> dict[str, Path]:
    """Name -> file of the shipped prompt sets."""
    folder = Path(str(resources.files("rmas_jax.prompts")))
    return {file.stem: file for file in folder.glob("*.yaml") if file.name != TASK_TYPES}


def _role_prompt(
    entry: Any,
    *,
    senders: set[str],
    roles: Sequence[str],
    task: str | None,
    where: str,
) -> RolePrompt:
    """A role's templates from a file, checked against its senders."""
    if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
        raise PromptError(f"{where}: {shown(entry)}; a role has texts system, first and later")
    unknown = set(entry) - {"system", "first", "later"}
    if unknown or "first" not in entry:
        raise PromptError(
            f"{where}: {shown(sorted(map(str, unknown))) if unknown else 'first'} "
            f"{'unknown' if unknown else 'missing'}; a role has system, first and later"
        )
    for form, text in entry.items():
        check_text(text, source=f"{where}: {form}", error=PromptError)
        if found := RESERVED.search(text):
            raise PromptError(
                f"{where}: {form}: must not hold the private characters U+E000 to U+E003, got "
                f"{found[0]!a} at character {found.start()}"
            )
    texts = {form: _with_task(text, task, roles, where) for form, text in entry.items()}
    prompt = RolePrompt(texts.get("system", ""), texts["first"], texts.get("later", texts["first"]))
    for form, needed in ((prompt.first, set()), (prompt.later, senders)):
        fields = set(FIELD.findall(form))
        if lacking := ({"question"} | needed) - fields:
            raise PromptError(f"{where}: {shown(form)} lacks {sorted(lacking)}")
        if extra := fields - {"question"} - senders:
            raise PromptError(
                f"{where}: {shown(sorted(extra))} is no sender of {where.rpartition(' ')[2]}; "
                f"slots are {sorted(senders)}"
            )
    return prompt


def _with_task(text: str, task: str | None, roles: Sequence[str], where: str) -> str:
    """Fills in the texts of a type of task; a role's name takes precedence over a place's."""
    types = task_types()
    places = {place for texts in types.values() for place in texts} - {"answer_retry", *roles}
    used = places.intersection(FIELD.findall(text))
    if used and task is None:
        raise PromptError(
            f"{where}: {sorted(used)} depend on the type of task, which must be one of "
            f"{sorted(types)}, got none"
        )
    if task is None:
        return text
    for place in used:
        text = text.replace(f"{{{place}}}", types[task][place])
    return text
