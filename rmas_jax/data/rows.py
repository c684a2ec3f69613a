"""Turns a row of a file into an `Example`: choice of fields, and bad rows."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeGuard

from rmas_jax.data.examples import Example
from rmas_jax.host.errors import InputError, clipped, shown

# Part of a row, or role -> its possible fields, in order of precedence: those of the published data
# sets and upstream's fallbacks. The field of any other role is its own name. (For `summarizer`,
# upstream's outer loop prefers `answer` to the summary: set `data.columns: {summarizer: answer}`
# to do the same.)
FIELDS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "question": ("question", "query", "prompt", "text", "input"),
    "answer": ("answer",),
    "difficulty": ("difficulty",),
    "planner": ("plan", "planner"),
    "critic": ("refined_plan", "critic"),
    "solver": ("draft", "solver", "answer"),
    "math": ("hie_math_expert", "math_expert", "expert_math", "math"),
    "code": ("hie_code_expert", "code_expert", "expert_code", "code"),
    "science": ("hie_science_expert", "science_expert", "expert_science", "science"),
    "summarizer": ("hie_summarizer", "summary", "summarizer", "answer"),
    "expert": ("distill_expert", "refined_plan", "expert_plan", "expert"),
    "learner": ("distill_learner", "learner", "answer", "learner_answer"),
    "reflector": ("deliberation_reflector", "reflector", "answer"),
    "toolcaller": ("deliberation_toolcaller", "toolcaller", "answer"),
}
# Field -> the field that makes it only a part of a question (Alpaca's instruction format).
HALVES = {"input": "instruction"}
PARTS = ("id", "question", "answer", "difficulty")
EXACT = 2**53  # floats represent every whole number up to this
INT32 = range(-(2**31), 2**31)  # range of a difficulty
# Slot markers in templates, here (prompts.SENTINEL) and upstream.
SLOT_MARKER = re.compile(r"[\ue000\ue001]|<<\w*SLOT>>")


class DataError(InputError):
    """Unusable data; the message names the file or setting and the allowed values."""


class BadRow(NamedTuple):
    """A row left out."""

    file: str
    line: int  # from 1; the row's number in files without lines
    reason: str


@dataclasses.dataclass(frozen=True)
class Columns:
    """Fields of a file by part of a row and by role; without missing ones."""

    parts: Mapping[str, str]
    texts: Mapping[str, str]
    is_difficulty_chosen: bool = False  # by the configuration, not by the field's name
    further: tuple[str, ...] = ()  # other fields to keep, in rows that have them


def names_of(part: str, *, answers: bool = False) -> tuple[str, ...]:
    """Possible fields of a part of a row, or of a role; the answerer's include the answer."""
    names = FIELDS.get(part, (part,))
    return (*names, "answer") if answers and "answer" not in names else names


def looked_for(
    roles: Sequence[str], chosen: Mapping[str, str], further: Sequence[str] = ()
) -> set[str]:
    """All fields that `choose_columns` may choose."""
    names = {name for part in (*PARTS, *roles) for name in names_of(part, answers=True)}
    return names | {*chosen.values(), *HALVES.values(), *further}


def choose_columns(
    present: Collection[str],
    roles: Sequence[str],
    chosen: Mapping[str, str],
    *,
    where: str,
    further: Sequence[str] = (),
    prompted: Sequence[str] = (),
    needed: Collection[str] = ("question", "answer"),
) -> Columns:
    """Finds the fields of a file.

    Args:
      present: the file's fields.
      roles: in the order of their turns; the last one answers.
      chosen: part or role -> field, instead of the default ones; other keys are ignored.
      where: the file, for errors.
      further: other fields to keep.
      prompted: fields of prompts, to keep where they are: `prompts.check_columns` names the rows
        without them.
      needed: parts that have to be there.

    Raises:
      DataError: no field for a needed part, or a chosen or further field is missing.
    """
    found: dict[str, str] = {}
    for part in (*PARTS, *roles):
        names = names_of(part, answers=part in roles[-1:])
        names = (chosen[part],) if part in chosen else names
        if name := next((name for name in names if name in present), None):
            found[part] = name
            if (half := HALVES.get(name)) in present and part not in chosen:
                raise DataError(
                    f"{where}: the {part} must be in one field, got {half} and {name}; choose one "
                    "(data.columns), or write both into one field"
                )
        elif part in chosen or part in needed:
            raise DataError(
                f"{where}: the {part} must be in a field {' or '.join(names)}, got fields "
                f"{listed_names(present)} (data.columns chooses another)"
            )
    if lacking := [name for name in further if name not in present]:
        raise DataError(
            f"{where}: fields of the benchmark must be among {listed_names(present)}, got "
            f"{clipped(lacking[0], 60)}"
        )
    return Columns(
        parts={part: found[part] for part in PARTS if part in found},
        texts={role: found[role] for role in roles if role in found},
        is_difficulty_chosen="difficulty" in chosen,
        further=tuple(dict.fromkeys((*further, *(name for name in prompted if name in present)))),
    )


def listed_names(names: Collection[str]) -> str:
    """Names for a message, the first 20 of them."""
    first = [clipped(name, 60) for name in sorted(names)[:20]]
    return ", ".join(first + ["..."] * (len(names) > len(first))) or "none"


def to_example(content: Any, columns: Columns, *, place: str, rounds: int) -> Example:
    """Reads one row; see `Example`.

    Args:
      content: the parsed row.
      columns: its fields.
      place: default id of the row.
      rounds: number of rounds that need texts. A text, or a list of one, serves all of them.

    Raises:
      ValueError: the row is bad; gives the reason.
    """
    if isinstance(content, ValueError):  # of reading the row
        raise content
    if not isinstance(content, Mapping):
        raise ValueError(f"a row must be an object, got {shown(content)}")
    parts = columns.parts
    has_id = content.get(parts.get("id")) is not None
    return Example(
        id=text_of(content, parts["id"], numbers=True) if has_id else place,
        question=text_of(content, parts["question"]),
        answer=text_of(content, parts["answer"], numbers=True) if "answer" in parts else "",
        difficulty=_difficulty(content, columns),
        texts={
            role: _role_texts(content, field, rounds, numbers=field == parts.get("answer"))
            for role, field in columns.texts.items()
        },
        fields={
            field: _as_text(content[field], field)
            for field in columns.further
            if content.get(field) is not None
        },
    )


def _role_texts(
    content: Mapping[str, Any], field: str, rounds: int, *, numbers: bool
) -> tuple[str, ...]:
    """One text for all rounds, or one for each."""
    value = content.get(field)
    if not isinstance(value, list):
        return (text_of(content, field, numbers=numbers),)
    texts = tuple(text_of({field: text}, field) for text in value)
    if len(texts) != 1 and len(texts) < rounds:
        raise ValueError(f"{field} must be one text, or one per round ({rounds}), got {len(texts)}")
    return texts[:rounds]


def _as_text(value: Any, field: str) -> str:
    """A further field's value as text; JSON unless it is text."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return _storable(text, field)


def _difficulty(content: Mapping[str, Any], columns: Columns) -> int:
    """The row's difficulty; 0 if missing, or unusable in a column that is not configured."""
    field = columns.parts.get("difficulty")
    value = None if field is None else content.get(field)
    if _is_fraction(value) and math.isfinite(value) and value % 1 == 0:
        value = int(value)  # columns with gaps hold floats
    if type(value) is int and value in INT32:
        return value
    if value is not None and columns.is_difficulty_chosen:
        raise ValueError(
            f"{columns.parts['difficulty']} must be a whole number of 32 bits, got {shown(value)}"
        )
    return 0


def text_of(content: Mapping[str, Any], field: str, *, numbers: bool = False) -> str:
    """The text of a field, or a number as text, if they are allowed.

    Raises:
      ValueError: it is missing, empty or of another type.
    """
    value = content.get(field)
    if numbers and (type(value) is int or (_is_fraction(value) and math.isfinite(value))):
        value = _number(value)
    if value is None:
        raise ValueError(f"{field} must be given, got none")
    if not isinstance(value, str):
        allowed = "text or a finite number" if numbers else "text"
        raise ValueError(f"{field} must be {allowed}, got {shown(value)}")
    if not value.strip():
        raise ValueError(f"{field} must not be empty")
    return _storable(value, field)


def _storable(value: str, field: str) -> str:
    """A text, checked to be fit for disk and prompts."""
    if re.search("[\ud800-\udfff]", value):  # half of a pair, which JSON can hold
        raise ValueError(f"{field} must be valid UTF-8, got half of a surrogate pair")
    if marker := SLOT_MARKER.search(value):
        raise ValueError(f"{field} must not hold a slot marker, got {marker[0]!r}")
    return value


def _is_fraction(value: Any) -> TypeGuard[float | Decimal]:
    """Whether a value's type has a decimal point."""
    return type(value) in (float, Decimal)


def _number(value: float | Decimal) -> str:
    """A number as text; a whole one without a point, which columns with gaps would add."""
    if isinstance(value, Decimal):  # at most 38 digits; a column has one number of decimal places
        text = f"{value:f}"
        return text.rstrip("0").removesuffix(".") if "." in text else text
    is_exact = isinstance(value, float) and value.is_integer() and abs(value) < EXACT
    return str(int(value) if is_exact else value)
