"""Prompts of text methods whose agents read each other along edges of their own.

A prompt set may have them in its section `methods`; `methods.yaml` serves all others and describes
the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.prompts.templates import (
    FIELD,
    METHODS,
    PromptError,
    RolePrompt,
    read_set,
    role_prompt,
    shipped_texts,
)

SECTION = "methods"
FINISH = "Answer in the form that the problem asks for."


def load_method_prompts(
    name_or_path: str,
    edges: Mapping[str, Sequence[tuple[str, str]]],
    own: Mapping[str, RolePrompt],
    *,
    answerer: str,
    task_type: str | None,
) -> dict[str, dict[str, RolePrompt]]:
    """The prompts of text methods, by method and role.

    Without a task type, {problem} is the answerer's first prompt in the set, with empty slots; its
    columns are the answerer's alone.

    Args:
      name_or_path: of the prompt set, as for `load_prompts`.
      edges: method -> (sender, receiver) roles of all that its agents read.
      own: the set's prompts by role; their system texts are used.
      answerer: the role of the drafts.
      task_type: its texts replace {problem} and {finish}.

    Raises:
      PromptError: names the file, the method, the role and the missing or unknown field.
    """
    path, raw = read_set(name_or_path)
    section = {} if SECTION in own else raw.get(SECTION, {})
    if not isinstance(section, dict) or set(section) - set(edges):
        raise PromptError(
            f"{path}: {SECTION} must have prompts of {', '.join(edges)} only, got {shown(section)}"
        )
    shipped, found = shipped_texts(METHODS), {}
    for method, pairs in edges.items():
        file, entries = (path, section) if method in section else (Path(METHODS), shipped)
        where = f"{file}: {SECTION}: {method}"
        found[method] = {
            role: _method_prompt(
                entries[method],
                role,
                [sender for sender, receiver in pairs if receiver == role],
                own,
                answerer=answerer,
                task_type=task_type,
                where=where,
            )
            for role in dict.fromkeys(role for edge in pairs for role in edge)
        }
    return found


def _method_prompt(
    entries: Any,
    role: str,
    senders: Sequence[str],
    own: Mapping[str, RolePrompt],
    *,
    answerer: str,
    task_type: str | None,
    where: str,
) -> RolePrompt:
    """The prompt of a role, with slots of its senders."""
    names = [role, "answerer", "agents"] if role == answerer else [role, "agents"]
    if not isinstance(entries, dict) or not set(names) & set(entries):
        raise PromptError(f"{where} must have one of {', '.join(names)}, got {shown(entries)}")
    entry = next(entries[name] for name in names if name in entries)
    where = f"{where}: {role}"
    if isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values()):
        block = entry.get("text", "{text}")
        entry = {
            name: _with_slots(text, senders, answerer, block)
            for name, text in entry.items()
            if name != "text"
        }
        entry.setdefault("system", own[role].system)
        if task_type is None:
            kept = {"question", *(own[answerer].columns if role == answerer else ())}
            problem = FIELD.sub(lambda m: m[0] * (m[1] in kept), own[answerer].first)
            entry = {name: _without_type(text, own, problem) for name, text in entry.items()}
    return role_prompt(
        entry, senders=set(senders), roles=list(own), task_type=task_type, where=where
    )


def _without_type(text: str, own: Mapping[str, RolePrompt], problem: str) -> str:
    """A template with {problem} and {finish} for texts without a task type."""
    for field, meaning in (("problem", problem), ("finish", FINISH)):
        if field not in own:  # a role's name is its slot
            text = text.replace(f"{{{field}}}", meaning)
    return text


def _with_slots(text: str, senders: Sequence[str], answerer: str, block: str) -> str:
    """A template whose {draft} and {texts} are slots of senders."""
    others = [sender for sender in senders if "{draft}" not in text or sender != answerer]
    blocks = [
        block.replace("{number}", str(number)).replace("{text}", f"{{{sender}}}")
        for number, sender in enumerate(others, start=1)
    ]
    return text.replace("{texts}", "\n".join(blocks)).replace("{draft}", f"{{{answerer}}}")
