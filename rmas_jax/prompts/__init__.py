"""Role templates, chat rendering, and slots as arrays.

A prompt becomes blocks, each padded on the left, so that the last position is always a real token:

    prefix            body of round r
    . . q q q q q     . l l | z z z z | . s s s      . padding, q prefix, l lead, z slot, s suffix

The prefix (system text, question) is the same in every round and is read once; the body is read in
every round. Where the first round has no slot, the slot's positions are invalid, so one compiled
round body serves all rounds.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from flax import struct

from rmas_jax.host.errors import InputError
from rmas_jax.host.yaml_files import read_yaml
from rmas_jax.models.tokenizer import encode_plain, special_tokens

FIRST, LATER = 0, 1  # the two forms of a role's prompt
SENTINEL = "\ue000{}\ue001"  # private-use characters stand for fields while a template renders
FIELD = re.compile(r"\{(\w+)\}")
TASK_TYPES = "task_types.yaml"  # what stands in the places of a prompt set that depend on the task


class PromptError(InputError):
    """A template or a chat template cannot be used."""


@dataclasses.dataclass(frozen=True)
class RolePrompt:
    """Templates of one role; `{question}` and slots named by their sender are fields."""

    system: str
    first: str
    later: str


@struct.dataclass
class StagePrompt:
    """What one role reads, for a batch of questions; arrays have the batch in front."""

    prefix_ids: Any  # [B, P] int32; read once
    prefix_valid: Any  # [B, P] bool
    body_ids: Any  # [B, 2, T] int32; form FIRST or LATER; 0 at slots
    body_valid: Any  # [B, 2, T] bool; a slot that a form lacks is invalid
    slot_index: tuple[int, ...] = struct.field(pytree_node=False)  # [T] received vector, -1 a token
    senders: tuple[str, ...] = struct.field(pytree_node=False)  # roles, in the order of the slots


@functools.cache
def task_types() -> dict[str, dict[str, Any]]:
    """Type of task -> place in a prompt -> its text, and `second_try` (see the file)."""
    return yaml.safe_load(resources.files("rmas_jax.prompts").joinpath(TASK_TYPES).read_text())


def load_prompts(
    name_or_path: str, edges: Sequence[tuple[str, str]], task: str | None = None
) -> dict[str, RolePrompt]:
    """Reads a prompt set that is shipped by name, or a YAML file.

    Args:
      name_or_path: "relay", or a path.
      edges: (sender, receiver) roles; the receiver's `later` template must hold `{sender}`.
      task: type of task, whose texts stand in the places {problem}, {plan} and {finish} of sets
        that have them.

    Raises:
      PromptError: names the file, the role and the field that is missing or unknown.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = Path(str(resources.files("rmas_jax.prompts").joinpath(f"{name_or_path}.yaml")))
    if not path.is_file():
        folder = Path(str(resources.files("rmas_jax.prompts")))
        shipped = sorted(file.stem for file in folder.glob("*.yaml") if file.name != TASK_TYPES)
        raise PromptError(
            f"prompts={name_or_path!r}: no such file; a path to a YAML file or one of {shipped}"
        )
    if task is not None and task not in task_types():
        raise PromptError(f"task={task!r}: no such type; allowed are {sorted(task_types())}")
    raw = read_yaml(path, error=PromptError)
    roles = sorted({role for edge in edges for role in edge})
    if not isinstance(raw, dict) or (missing := [r for r in roles if r not in raw]):
        missing = missing if isinstance(raw, dict) else roles
        raise PromptError(f"{path}: prompts of {missing} missing")
    prompts = {}
    for role in roles:
        entry = raw[role]
        if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
            raise PromptError(
                f"{path}: {role}: {entry!r}; a role has texts system, first and later"
            )
        unknown = set(entry) - {"system", "first", "later"}
        if unknown or "first" not in entry:
            raise PromptError(
                f"{path}: {role}: {sorted(unknown) or 'first'} "
                f"{'unknown' if unknown else 'missing'}; a role has system, first and later"
            )
        texts = {
            form: _with_task(text, task, roles, f"{path}: {role}") for form, text in entry.items()
        }
        prompt = RolePrompt(
            texts.get("system", ""), texts["first"], texts.get("later", texts["first"])
        )
        senders = {sender for sender, receiver in edges if receiver == role}
        for form, needed in ((prompt.first, set()), (prompt.later, senders)):
            fields = set(FIELD.findall(form))
            if lacking := ({"question"} | needed) - fields:
                raise PromptError(f"{path}: {role}: {form!r} lacks {sorted(lacking)}")
            if extra := fields - {"question"} - senders:
                raise PromptError(
                    f"{path}: {role}: {sorted(extra)} is no sender of {role}; "
                    f"slots are {sorted(senders)}"
                )
        prompts[role] = prompt
    return prompts


def _with_task(text: str, task: str | None, roles: Sequence[str], where: str) -> str:
    """Puts the texts of a type of task into their places; a role of the same name goes first."""
    types = task_types()
    places = {place for texts in types.values() for place in texts} - {"second_try", *roles}
    used = places.intersection(FIELD.findall(text))
    if used and task is None:
        raise PromptError(
            f"{where}: {sorted(used)} depend on the type of task, and none is set; "
            f"allowed are {sorted(types)}"
        )
    for place in used:
        text = text.replace(f"{{{place}}}", types[task][place])
    return text


def render_chat(tokenizer: Any, system: str, user: str) -> str:
    """Renders one exchange up to where the model starts to write, by the agent's own template.

    Thinking is off where the template knows it; a template that refuses a system role gets
    system and user text in one turn.
    """
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    turns = [{"role": "system", "content": system}] if system else []
    try:
        return tokenizer.apply_chat_template([*turns, {"role": "user", "content": user}], **options)
    except Exception as error:  # jinja2.TemplateError where the template raises
        if not system or "role" not in str(error).lower():
            raise PromptError(f"{tokenizer.name_or_path}: chat template failed: {error}") from error
    merged = [{"role": "user", "content": f"{system}\n\n{user}"}]
    return tokenizer.apply_chat_template(merged, **options)


def split_template(tokenizer: Any, prompt: RolePrompt, form: str) -> list[str]:
    """Renders a template and cuts it at its slots: [text, sender, text, sender, ..., text].

    Fields are private-use sentinels while the chat template renders and the question is put in
    only after the cut, so no question text can move a slot.
    """
    user = FIELD.sub(lambda match: SENTINEL.format(match[1]), form)
    rendered = render_chat(tokenizer, prompt.system, user)
    pieces = re.split("\ue000(\\w+)\ue001", rendered)
    texts, senders = [pieces[0]], []
    for field, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if field == "question":
            texts[-1] += SENTINEL.format(field) + text
        else:
            senders.append(field)
            texts.append(text)
    return [part for pair in zip(texts, [*senders, ""], strict=True) for part in pair][:-1]


def encode_piece(tokenizer: Any, text: str, questions: Sequence[str]) -> list[list[int]]:
    """Token ids of a piece of a rendered template, filled with every question.

    A question that names a special token is tokenised by itself, so that it cannot end its turn.
    """
    marker = SENTINEL.format("question")
    if marker not in text:
        return [tokenizer(text, add_special_tokens=False)["input_ids"]] * len(questions)
    filled = [text.replace(marker, question) for question in questions]
    rows = tokenizer(filled, add_special_tokens=False)["input_ids"]
    names = special_tokens(tokenizer)
    for i, question in enumerate(questions):
        if any(name in question for name in names):
            around = tokenizer(text.split(marker), add_special_tokens=False)["input_ids"]
            [own] = encode_plain(tokenizer, [question])
            rows[i] = functools.reduce(lambda row, after: [*row, *own, *after], around)
    return rows


def turn_end(tokenizer: Any, end_tokens: Sequence[int]) -> int:
    """Which of the ids that end an agent's text stands behind an answer in its chat template.

    The tokenizer's own end token need not: Gemma's ends a document, not a turn. It is taken where
    the template puts none of them there.

    Raises:
      PromptError: there is no such token either.
    """
    answer = SENTINEL.format("answer")
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:
        raise PromptError(f"{tokenizer.name_or_path}: chat template failed: {error}") from error
    behind = tokenizer(rendered.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    for token in (*behind, tokenizer.eos_token_id):
        if token in end_tokens:
            return token
    raise PromptError(
        f"{tokenizer.name_or_path}: nothing ends an answer: of the end tokens {list(end_tokens)} "
        "the chat template puts none behind it, and the tokenizer has no eos_token"
    )


def left_pad(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[np.ndarray, ...]:
    """Ragged token rows -> ids [B, W] int32 and valid [B, W] bool, padded on the left."""
    width = max(map(len, rows), default=0) if width is None else width
    ids = np.zeros((len(rows), width), np.int32)
    valid = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        if len(row):
            ids[i, -len(row) :] = row
            valid[i, -len(row) :] = True
    return ids, valid


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common start of two sequences."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def encode_stage(
    tokenizer: Any, prompt: RolePrompt, questions: Sequence[str], *, slot_width: int
) -> StagePrompt:
    """Tokenises a role's prompt for a batch of questions.

    Args:
      tokenizer: the agent's own.
      prompt: templates of the role.
      questions: B texts; any text is safe: it moves no slot and ends no turn.
      slot_width: vectors per slot (M).
    """
    parts = {FIRST: prompt.first, LATER: prompt.later}
    parts = {form: split_template(tokenizer, prompt, text) for form, text in parts.items()}
    senders = tuple(parts[LATER][1::2])
    if tuple(parts[FIRST][1::2]) not in ((), senders):
        raise PromptError(
            f"first round has slots {parts[FIRST][1::2]}, later rounds {list(senders)}: "
            "the first round has the same slots or none"
        )
    texts = {
        form: [encode_piece(tokenizer, text, questions) for text in pieces[0::2]]
        for form, pieces in parts.items()
    }
    # The prefix is what both forms begin with; the rest of a form is its body. It never takes all
    # of a form's tokens before the model writes, so a body always ends in a real token.
    shared = [
        min(_common(a, b), len(a) - 1, len(b) - 1 if len(texts[LATER]) == 1 else len(b))
        if len(texts[FIRST]) == 1
        else _common(a, b)
        for a, b in zip(texts[FIRST][0], texts[LATER][0], strict=True)
    ]
    prefix_ids, prefix_valid = left_pad(
        [row[:n] for row, n in zip(texts[LATER][0], shared, strict=True)]
    )
    blocks: dict[int, list[list[list[int]]]] = {}
    for form, rows in texts.items():
        rest = [row[n:] for row, n in zip(rows[0], shared, strict=True)]
        empty = [[] for _ in questions]
        if len(rows) == 1:  # no slot: everything stands in the last block
            blocks[form] = [empty] * len(senders) + [rest]
        else:
            blocks[form] = [rest, *rows[1:]]
    ids, valid, slot_index = [], [], []
    for k in range(len(senders) + 1):
        width = max(len(row) for form in blocks for row in blocks[form][k])
        padded = [left_pad(blocks[form][k], width) for form in (FIRST, LATER)]
        ids.append(np.stack([p[0] for p in padded], axis=1))
        valid.append(np.stack([p[1] for p in padded], axis=1))
        slot_index += [-1] * width
        if k < len(senders):
            ids.append(np.zeros((len(questions), 2, slot_width), np.int32))
            has_slot = np.array([len(texts[form]) > 1 for form in (FIRST, LATER)])
            valid.append(np.broadcast_to(has_slot[:, None], ids[-1].shape))
            slot_index += range(k * slot_width, (k + 1) * slot_width)
    return StagePrompt(
        prefix_ids=prefix_ids,
        prefix_valid=prefix_valid,
        body_ids=np.concatenate(ids, axis=-1),
        body_valid=np.concatenate(valid, axis=-1),
        slot_index=tuple(slot_index),
        senders=senders,
    )


def take(prompts: Any, rows: Any) -> Any:
    """The given rows of every array in a tree of prompts."""
    return jax.tree.map(lambda array: array[rows], prompts)
