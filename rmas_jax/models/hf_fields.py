"""Typed fields of a JSON object: allowed values, and one reader for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.errors import UnsupportedModelError

Raw = Mapping[str, Any]  # the object of a config.json, or one inside it


class _Required:
    """The default of a required field."""


REQUIRED = _Required()


@dataclasses.dataclass(frozen=True)
class Field:
    """The allowed values of a field, and its default."""

    is_allowed: Callable[[Any], bool]
    allowed: str  # the same in words, after "must be"
    default: Any = REQUIRED
    null: bool = False  # whether null is allowed too, as in transformers' class

    def __call__(self, default: Any, *, null: bool = False) -> Field:
        """The same field with a default."""
        return dataclasses.replace(self, default=default, null=null)


def whole(low: int, high: int) -> Field:
    """Integers; 4096.0 and true are none."""
    return Field(
        lambda value: type(value) is int and low <= value <= high,
        f"an integer from {low} to {high}",
    )


def number(above: float, at_most: float) -> Field:
    """Finite numbers."""
    return Field(
        lambda value: is_number(value) and above < value <= at_most,
        f"a number above {above:g}, at most {at_most:g}",
    )


def one_of(*values: Any) -> Field:
    """One of several texts or numbers."""
    return Field(
        lambda value: any(type(value) is type(v) and value == v for v in values),
        f"one of {', '.join(map(repr, values))}" if len(values) > 1 else repr(values[0]),
    )


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number; true is none."""
    return type(value) in (int, float)


FLAG = Field(lambda value: type(value) is bool, "true or false")
OBJECT = Field(lambda value: isinstance(value, dict), "an object")
POSITIVE = number(0, 1e30)
FACTORS = Field(
    lambda value: (
        isinstance(value, list) and 0 < len(value) <= 2**16 and all(map(POSITIVE.is_allowed, value))
    ),
    "a list of numbers above 0",
)
POSITIONS = whole(1, 2**53)


def read_fields(raw: Raw, fields: Mapping[str, Field], *, where: str = "") -> dict[str, Any]:
    """The values of `fields`, with the types of the table.

    Args:
      raw: the object that holds them.
      fields: allowed values; ignores other fields of `raw`.
      where: start of messages, such as the name of an object inside the file.

    Raises:
      UnsupportedModelError: a field is missing, of another type or out of range; names the field,
        its value and the allowed values.
    """
    values = {}
    for name, field in fields.items():
        if name not in raw:
            if field.default is REQUIRED:
                raise UnsupportedModelError(f"{where}{name} must be {field.allowed}, got nothing")
            values[name] = field.default
            continue
        value = raw[name]
        if not (value is None and field.null) and not field.is_allowed(value):
            or_null = " or null" * field.null
            raise UnsupportedModelError(
                f"{where}{name} must be {field.allowed}{or_null}, got {shown(value)}"
            )
        values[name] = value
    return values
